//! Properties of the plan that hold for any events in any order.

use proptest::prelude::*;

use super::*;
use crate::stage::action::RecipeLeft;

fn any_event() -> impl Strategy<Value = Event> {
    let any_host = || (0usize..6).prop_map(host);
    let any_content = || (0usize..7).prop_map(digest);
    let any_image = || (0usize..3).prop_map(image);
    let standing = prop_oneof![
        Just(Standing::Queued),
        Just(Standing::Staging),
        Just(Standing::Installing),
        Just(Standing::Present),
        Just(Standing::Failed),
        Just(Standing::Gone),
    ];
    let selection = prop_oneof![
        Just(Selection::All),
        prop::collection::vec(0usize..8, 0..5)
            .prop_map(|hosts| Selection::Hosts(hosts.into_iter().map(host).collect())),
    ];
    let end = prop_oneof![
        3 => Just(LeaseEnd::Done),
        1 => Just(LeaseEnd::OriginFailed),
        1 => prop_oneof![Just(Fault::Bad), Just(Fault::Missing), Just(Fault::Refused), Just(Fault::Unusable), Just(Fault::CutShort)].prop_map(LeaseEnd::Faulty),
        1 => Just(LeaseEnd::HostUnable),
        1 => Just(LeaseEnd::Released),
    ];
    let trouble = prop_oneof![
        4 => Just(None),
        2 => Just(Some(Trouble::Failing)),
        1 => Just(Some(Trouble::Silent)),
        1 => any::<u64>().prop_map(|millis| Some(Trouble::Throttled(Duration::from_millis(millis)))),
    ];
    prop_oneof![
        3 => (any_host(), 0u32..3).prop_map(|(host, zone)| Event::HostKnown { host, zone: format!("{zone}") }),
        1 => any_host().prop_map(Event::HostForgotten),
        4 => any_host().prop_map(Event::HostConnected),
        2 => any_host().prop_map(Event::HostDisconnected),
        2 => (0usize..3, 0usize..6, selection, prop::collection::vec(0usize..8, 0..4)).prop_map(|(number, from, hosts, paused)| {
            let mut event = with_paused(wanted(number, from..from + 3, hosts), &paused);
            if from % 2 == 0 {
                // of another size than the same content of another image
                event = with_recipe(event, from + 3);
            }
            if let (2, Event::Wanted { purpose, .. }) = (number, &mut event) {
                *purpose = Purpose::Mirror;
            }
            event
        }),
        1 => any_image().prop_map(Event::Cancelled),
        1 => any_image().prop_map(Event::Urged),
        5 => (any_host(), any_image(), standing, any::<u64>()).prop_map(|(host, image, standing, held_bytes)| Event::Reported { host, image, standing, held_bytes }),
        4 => (any_host(), any_content(), any::<u32>(), any::<u64>(), any::<bool>(), trouble).prop_map(|(host, content, chunks, bytes, paced, trouble)| Event::LeaseProgress { host, content, range: None, chunks, bytes, paced, trouble }),
        4 => (any_host(), any_content(), end).prop_map(|(host, content, end)| Event::LeaseEnded { host, content, range: None, end }),
        2 => (any_host(), any_host()).prop_map(|(by, host)| Event::Blamed { by, host }),
        2 => (any_host(), prop::collection::vec(any_content(), 0..3)).prop_map(|(host, contents)| Event::LeasesHeld { host, contents }),
        3 => (any_host(), prop::collection::vec(any_content(), 0..3)).prop_map(|(host, contents)| Event::WithoutSource { host, contents }),
        5 => (any_host(), prop::collection::vec((any_content(), 0u32..120), 0..4)).prop_map(|(host, contents)| Event::Holds { host, contents }),
        2 => (any_host(), any_host(), any_content(), any::<bool>()).prop_map(|(by, maker, content, vouched)| Event::FalseLink { by, maker, content, vouched }),
        1 => (any_host(), any_content(), any::<u32>()).prop_map(|(host, content, from)| Event::Retracted { host, content, from }),
        2 => (any_host(), any_image(), any_content(), 0u32..3).prop_map(|(host, image, content, chunk)| Event::RecipeDoubted { host, image, content, chunk }),
        1 => (any_host(), any::<bool>()).prop_map(|(maker, lie)| Event::Contradicted { maker, says: if lie { Contradiction::Lie } else { Contradiction::False } }),
        3 => Just(Event::Tick),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn any_event_is_legal_in_any_state(seed in any::<u64>(), events in prop::collection::vec((any_event(), 0u64..4_000), 1..200)) {
        let mut plan = Plan::new(Config { origin_streams: 2, ..Config::default() }, seed);
        let mut now = 0;
        let mut leases: BTreeMap<Digest, HostId> = BTreeMap::new();
        let mut left: BTreeSet<(Digest, Digest)> = BTreeSet::new();
        // what some image had for its recipe, and another one may need as a content since: its lease goes on
        let mut recipes_ever: BTreeSet<Digest> = BTreeSet::new();
        for (event, wait) in events {
            now += wait;
            if let Event::Wanted { recipe: Some(recipe), .. } = &event {
                recipes_ever.insert(recipe.digest);
            }
            // another recipe, another life of the image, or another size of the content
            if matches!(event, Event::Wanted { .. } | Event::Cancelled(_) | Event::LeaseEnded { end: LeaseEnd::Faulty(Fault::Bad), .. }) {
                left.clear();
            }
            if let Event::LeaseEnded { host, content, .. } = &event
                && leases.get(content) == Some(host)
            {
                leases.remove(content);
            }
            if let Event::HostForgotten(host) = &event {
                leases.retain(|_, holder| holder != host);
            }
            if let Event::LeasesHeld { host, contents } = &event {
                // the agent lost these leases; leases of this session stay, and the checks below give them back
                let lost = |content: &Digest| !contents.contains(content);
                let granted_before = |content: &Digest| plan.leases.all_of(content).first().is_some_and(|lease| plan.hosts.get(host).is_some_and(|host| lease.granted_at() < host.since()));
                if plan.hosts.contains(host) {
                    leases.retain(|content, holder| holder != host || !lost(content) || !granted_before(content));
                }
            }
            for action in feed(&mut plan, now, event) {
                match action {
                    Action::Grant { host, content, .. } => {
                        prop_assert!(plan.hosts.is_connected(&host), "granted to a host that isn't connected");
                        prop_assert!(plan.hosts.is_trusted(&host), "granted to a shunned host");
                        prop_assert!(leases.insert(content, host).is_none(), "leased twice");
                    }
                    Action::Revoke { host, content, .. } => {
                        if leases.get(&content) == Some(&host) {
                            leases.remove(&content);
                        }
                    }
                    Action::LeaveRecipe(RecipeLeft { image, content, chunk }) => {
                        prop_assert!(chunk < 3);
                        let of = plan.images.get(&image);
                        prop_assert!(of.is_some_and(|of| of.contents().contains(&content)));
                        // the recipe is left once, and only where one of those who said so has the lease
                        prop_assert!(left.insert((image, content)), "left twice");
                        // the lease may end with the same event, after this
                        prop_assert!(leases.contains_key(&content) || plan.leases.contains(&content));
                    }
                    Action::Neighbours { host, neighbours } => {
                        prop_assert!(neighbours.len() <= 24);
                        prop_assert!(!neighbours.contains(&host));
                    }
                    Action::Stage { .. }
                    | Action::Cancel { .. }
                    | Action::Pause { .. }
                    | Action::DropRecipe { .. }
                    | Action::Quarantine(_)
                    | Action::Retract { .. } => {}
                }
            }
            let status = plan.status(at(now));
            let trials = plan.leases.iter().filter(|(_, lease)| lease.is_trial()).count();
            prop_assert!(trials <= 2, "more hosts on trial than streams");
            let recipes = plan.view().recipe_leases();
            prop_assert!(recipes <= grants::RECIPE_STREAMS, "more recipes than streams for them");
            let were_recipes = plan.leases.iter().filter(|(content, _)| recipes_ever.contains(*content)).count();
            let turned = were_recipes.saturating_sub(recipes).min(grants::RECIPE_STREAMS);
            let others = status.leases.len() - trials - recipes;
            // a lease whose trial is over keeps its place, and counts as any other
            prop_assert!(others + trials <= 3 + 2 + turned, "more leases than streams, a mirror's and those on trial");
            prop_assert!(plan.leases.len() - plan.leases.mirrors() - recipes <= 2 + turned, "staging took a mirror's place");
            for lease in &status.leases {
                // leases that were taken over after a restart aren't among the granted ones
                if let Some(holder) = leases.get(&lease.content) {
                    prop_assert_eq!(holder, &lease.host);
                }
            }
            for image in status.images {
                let lacking = image.hosts.iter().any(|host| host.reason.is_some());
                prop_assert_eq!(lacking || image.hosts.is_empty() || matches!(image.reason, Some(ImageReason::ContentFaulty(..) | ImageReason::Contradicts(_))), image.reason.is_some());
                for host in image.hosts {
                    prop_assert_eq!(host.reason.is_none(), host.standing == Some(Standing::Present));
                }
            }
            prop_assert!(plan.next_timeout().is_none_or(|due| due > at(now)));
            for id in plan.hosts.ids() {
                for other in plan.neighbours.of(id) {
                    prop_assert!(plan.neighbours.of(&other).contains(id), "neighbours are mutual");
                }
            }
        }
    }
}
