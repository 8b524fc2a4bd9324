//! Properties of the plan that hold for any events in any order.

use proptest::prelude::*;

use super::*;
use crate::stage::{
    action::RecipeLeft,
    plan::{hosts::Host, leases::Lease},
};

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
    // ranges as they are granted, and odd ones
    let range = || {
        let odd =
            (any::<u32>(), any::<u32>()).prop_map(|(from, until)| ChunkRange::new(from, until));
        let near =
            (0u32..110, 1u32..60).prop_map(|(from, count)| ChunkRange::new(from, from + count));
        let part = (1u32..5, 0u32..4).prop_map(|(parts, at)| {
            let size = 100u32.div_ceil(parts);
            ChunkRange::new(at * size, ((at + 1) * size).min(100))
        });
        prop_oneof![4 => Just(None), 4 => part, 1 => near, 1 => odd]
    };
    prop_oneof![
        3 => any_host().prop_map(Event::TakesRanges),
        // of a release most is here, and recipes are
        3 => any_host().prop_map(|host| Event::Holds { host, contents: (0..7).map(|content| (digest(content), 60)).collect() }),
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
        2 => (any_image(), -1i32..2, 0u64..3, prop::collection::vec(0usize..6, 0..3)).prop_map(|(image, priority, asked_ms, awaited)| Event::Ranked { image, priority, asked_ms, awaited: awaited.into_iter().map(host).collect() }),
        1 => any_image().prop_map(Event::Cancelled),
        1 => any_image().prop_map(Event::Urged),
        5 => (any_host(), any_image(), standing, any::<u64>()).prop_map(|(host, image, standing, held_bytes)| Event::Reported { host, image, standing, held_bytes }),
        4 => (any_host(), any_content(), range(), any::<u32>(), any::<u64>(), any::<bool>(), trouble).prop_map(|(host, content, range, chunks, bytes, paced, trouble)| Event::LeaseProgress { host, content, range, chunks, bytes, paced, trouble }),
        4 => (any_host(), any_content(), range(), end).prop_map(|(host, content, range, end)| Event::LeaseEnded { host, content, range, end }),
        2 => (any_host(), any_host()).prop_map(|(by, host)| Event::Blamed { by, host }),
        2 => (any_host(), prop::collection::vec((any_content(), range()), 0..3)).prop_map(|(host, leases)| Event::LeasesClaimed { host, leases }),
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
    fn any_event_is_legal_in_any_state(seed in any::<u64>(), streams in 2usize..5, events in prop::collection::vec((any_event(), 0u64..4_000), 1..200)) {
        let mut plan = Plan::new(Config { origin_streams: streams, ..Config::default() }, seed);
        let mut now = 0;
        // what was granted, by content
        let mut leases: BTreeMap<Digest, Vec<(HostId, Option<ChunkRange>)>> = BTreeMap::new();
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
            if let Event::LeaseEnded { host, content, range, .. } = &event
                && let Some(granted) = leases.get_mut(content)
            {
                granted.retain(|of| *of != (host.clone(), *range));
            }
            if let Event::HostForgotten(host) = &event {
                for granted in leases.values_mut() {
                    granted.retain(|(holder, _)| holder != host);
                }
            }
            if let Event::LeasesClaimed { host, leases: named } = &event {
                // the agent lost these leases; leases of this session stay, and the checks below give them back
                let granted_before = |content: &Digest| plan.leases.of(content, host).is_some_and(|lease| plan.hosts.get(host).is_some_and(|host| lease.granted_at() < host.since()));
                for (content, granted) in &mut leases {
                    if plan.hosts.contains(host) && granted_before(content) {
                        granted.retain(|(holder, range)| holder != host || named.contains(&(*content, *range)));
                    }
                }
            }
            let leased_before: BTreeSet<Digest> = plan.leases.iter().map(|(content, _)| *content).collect();
            for action in feed(&mut plan, now, event) {
                match action {
                    Action::Grant { host, content, range, .. } => {
                        prop_assert!(plan.hosts.is_connected(&host), "granted to a host that isn't connected");
                        prop_assert!(plan.hosts.is_trusted(&host), "granted to a shunned host");
                        prop_assert!(range.is_none() || plan.hosts.get(&host).is_some_and(Host::takes_ranges), "a range for a host that knows none");
                        let granted = leases.entry(content).or_default();
                        // a lease of all chunks may become that of a range
                        granted.retain(|of| range.is_none() || *of != (host.clone(), None));
                        let apart = |(by, of): &(HostId, Option<ChunkRange>)| *by != host && of.zip(range).is_some_and(|(of, range)| !of.overlaps(range));
                        prop_assert!(granted.iter().all(apart), "leased twice");
                        granted.push((host, range));
                    }
                    Action::Revoke { host, content, .. } => {
                        if let Some(granted) = leases.get_mut(&content) {
                            granted.retain(|(holder, _)| *holder != host);
                        }
                    }
                    Action::LeaveRecipe(RecipeLeft { image, content, chunk }) => {
                        prop_assert!(chunk < 3);
                        let of = plan.images.get(&image);
                        prop_assert!(of.is_some_and(|of| of.contents().contains(&content)));
                        // the recipe is left once, and only where one of those who said so has the lease
                        prop_assert!(left.insert((image, content)), "left twice");
                        // the lease may end with the same event
                        prop_assert!(leased_before.contains(&content) || plan.leases.contains(&content));
                    }
                    Action::Neighbours { host, neighbours } => {
                        prop_assert!(neighbours.len() <= 24);
                        prop_assert!(!neighbours.contains(&host));
                    }
                    Action::Sequence { host, images } => {
                        prop_assert!(plan.hosts.is_connected(&host) && images.len() > 1);
                        for image in images {
                            let of = plan.images.get(&image);
                            prop_assert!(of.is_some_and(|of| of.selects(&host, &plan.hosts) && !of.is_mirrors()));
                        }
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
            prop_assert!(trials <= streams, "more hosts on trial than streams");
            let recipes = plan.view().recipe_leases();
            prop_assert!(recipes <= grants::RECIPE_STREAMS, "more recipes than streams for them");
            let were_recipes = plan.leases.iter().filter(|(content, _)| recipes_ever.contains(*content)).count();
            let turned = were_recipes.saturating_sub(recipes).min(grants::RECIPE_STREAMS);
            let others = status.leases.len() - trials - recipes;
            // a lease whose trial is over keeps its place, and counts as any other
            prop_assert!(others + trials <= streams + 1 + streams + turned, "more leases than streams, a mirror's and those on trial");
            prop_assert!(plan.leases.len() - plan.leases.mirrors() - recipes <= streams + turned, "staging took a mirror's place");
            for lease in &status.leases {
                // leases that were taken over after a restart aren't among the granted ones
                let of = plan.leases.of(&lease.content, &lease.host);
                let taken_over = of.is_some_and(Lease::is_taken_over);
                let granted = leases.get(&lease.content);
                let granted = granted.is_some_and(|of| of.contains(&(lease.host.clone(), lease.range)));
                prop_assert!(taken_over || granted, "a lease from nowhere");
                let Some(range) = lease.range else { continue };
                let content = plan.contents.get(&lease.content);
                prop_assert!(content.is_some_and(|of| range.is_within(of.chunks()) && !of.is_recipe()));
                prop_assert!(!of.is_some_and(|of| of.is_mirrors() || of.is_trial()), "a range for a mirror");
                let beside = plan.leases.all_of(&lease.content).iter();
                let mut beside = beside.filter(|of| *of.host() != lease.host);
                prop_assert!(beside.all(|of| of.range().is_some_and(|of| !of.overlaps(range))), "ranges overlap");
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
