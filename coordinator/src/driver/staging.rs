//! The staging of wanted images: what follows from a change of wants for orders, pull tokens and pauses.
//!
//! [`Images`] knows what is wanted. [`Staging`] brings an image into the parts that look after it, and out of them.
//! From each change it makes the events for the plan and the orders for hosts.

use std::sync::Arc;

use proto::{
    Digest, HostId, Moment, Reason, image::Format, limits::MAX_IMAGES, message, recipe::Doubt,
};
use rollout::stage::{Event, Plan, RecipeLeft, RecipeLoss, event::Standing};
use tracing::warn;

use super::{
    ask::{CancelError, Placed},
    effect::Effects,
    fleet_recipes::{self, FleetRecipes},
    hosts::Hosts,
    images::{At, Changes, Credentials, Images},
    leases::{Leases, Token},
    members::Members,
    order,
    paces::Paces,
    pull_tokens::{Given, PullTokens, TokenAsk},
    recipe_words::{self, Heard},
    restages::Restages,
    stage_orders::{Said, StageOrders},
    writer::{Answer, Write},
};
use crate::{
    config::Config,
    metrics::Metrics,
    predicted::Predicted,
    resolve::{Granted, Registries},
    view::{CancelReply, HostState},
    wants::Want,
};

/// The wanted images, and the parts that look after them.
#[derive(Debug)]
pub(super) struct Staging {
    images: Images,
    orders: StageOrders,
    restages: Restages,
    tokens: PullTokens,
    leases: Leases,
    fleet_recipes: FleetRecipes,
    paces: Paces,
    /// Knows which images' pull tokens are handed down to hosts.
    registries: Arc<Registries>,
    metrics: Metrics,
}

impl Staging {
    /// Nothing is wanted.
    pub(super) fn new(
        images: Images,
        registries: Arc<Registries>,
        metrics: Metrics,
        config: &Config,
    ) -> Self {
        Self {
            images,
            orders: StageOrders::default(),
            restages: Restages::default(),
            tokens: PullTokens::default(),
            leases: Leases::new(metrics.clone()),
            fleet_recipes: FleetRecipes::new(config.makes_recipes),
            paces: Paces::default(),
            registries,
            metrics,
        }
    }

    // ---- what is wanted --------------------------------------------------------------------------------------------

    /// Operators want this image, under each reference on the hosts that the want names for that reference.
    pub(super) fn enter(&mut self, at: At<'_>, want: Want) -> Effects {
        let changes = self.images.enter(at, want);
        self.follow(at.now, changes)
    }

    /// Operators don't want this any more. `name` is a reference, or the bare digest of an image.
    ///
    /// # Errors
    /// When operators don't want it.
    pub(super) fn cancel(
        &mut self,
        at: At<'_>,
        name: &str,
    ) -> Result<(Digest, CancelReply, Effects), CancelError> {
        let (image, reply, changes) = self.images.cancel(at, name)?;
        Ok((image, reply, self.follow(at.now, changes)))
    }

    /// The cluster wants exactly these images.
    pub(super) fn place(&mut self, at: At<'_>, wants: Vec<Placed>) -> Effects {
        let changes = self.images.place(at, wants);
        self.follow(at.now, changes)
    }

    /// Takes up images that the cluster wants and that had to wait, as far as there is room now.
    pub(super) fn place_waiting(&mut self, at: At<'_>) -> Effects {
        let changes = self.images.place_waiting(at);
        changes.map_or_else(Effects::default, |changes| self.follow(at.now, changes))
    }

    /// Hosts joined the fleet.
    pub(super) fn fleet_changed(&mut self, at: At<'_>) -> Effects {
        let changes = self.images.fleet_changed(at);
        self.follow(at.now, changes)
    }

    fn follow(&mut self, now: Moment, changes: Changes) -> Effects {
        let mut effects = Effects::default();
        for image in changes.asked {
            effects.write(match self.images.asked(&image) {
                Some(want) => Write::Want(Box::new(want), Answer::none()),
                None => Write::Drop(image, Answer::none()),
            });
        }
        for image in changes.ordered {
            self.orders.changed(&image);
        }
        for image in changes.news {
            self.orders.news(image);
        }
        for image in changes.over {
            self.orders.forget(&image);
            self.restages.forget(&image);
            self.tokens.forget(&image);
            self.leases.forget(&image);
            self.fleet_recipes.forget(&image);
        }
        for (image, why) in changes.tokens {
            let Some(wanted) = self.images.get(&image) else {
                continue;
            };
            let handed_down = self.registries.hands_down(wanted.want());
            match why {
                Credentials::Asked if handed_down => self.tokens.wanted(now, image),
                Credentials::Asked => {}
                Credentials::Changed => self.tokens.wanted_anew(now, image, handed_down),
            }
        }
        for event in changes.events {
            effects.tell(event);
        }
        if changes.names {
            effects.names_changed();
        }
        effects
    }

    /// All that operators wanted before this start is among the wants.
    pub(super) const fn recalled(&mut self) {
        self.images.recalled();
    }

    /// All that the cluster wanted before this start is among the wants.
    pub(super) const fn placed(&mut self) {
        self.images.placed();
    }

    /// A new number, greater than those of all earlier asks.
    pub(super) const fn next_number(&mut self) -> u64 {
        self.images.next_number()
    }

    /// Takes note that an image is everywhere. Returns how long that took, at the first call only.
    pub(super) fn everywhere(
        &mut self,
        now: Moment,
        image: &Digest,
    ) -> Option<std::time::Duration> {
        self.images.everywhere(now, image)
    }

    // ---- what hosts are ordered ------------------------------------------------------------------------------------

    /// A session began.
    pub(super) fn connected(&mut self, host: &HostId, hello: &message::Hello) {
        let has = hello.images.iter().filter_map(|image| {
            let manifest = message::digest(&image.manifest).ok()?;
            Some((manifest, image.order?))
        });
        let has = has.take(MAX_IMAGES).collect();
        // a version that doesn't name the epoch of its roster can't say that it lacks a manifest either
        let says = hello.roster_epoch.is_some();
        self.orders.connected(host, has, says);
    }

    /// The host has no session any more.
    pub(super) fn disconnected(&mut self, host: &HostId) {
        self.orders.disconnected(host);
    }

    /// The host isn't part of the fleet any more.
    pub(super) fn left(&mut self, host: &HostId) {
        self.orders.left(host);
        self.leases.left(host);
    }

    /// A full report of the host names these images and no others.
    pub(super) fn reported(&mut self, host: &HostId, images: &std::collections::BTreeSet<Digest>) {
        self.orders.reported(host, images);
    }

    /// The host is told the names of its images, and drops every image without a name.
    pub(super) fn named(&mut self, host: &HostId, named: impl Fn(&Digest) -> bool) {
        self.orders.named(host, named);
    }

    /// Has a host stage an image. A host whose agent can't stage images of this kind isn't ordered to: the image fails
    /// there, with the reason, as if the host had said so.
    pub(super) fn begin(
        &mut self,
        now: Moment,
        hosts: &mut Hosts,
        host: &HostId,
        image: Digest,
    ) -> Effects {
        let mut effects = Effects::default();
        if self.can_stage(hosts, host, &image) {
            let order = self.stage(hosts, host, image);
            effects.send(order.map(|order| (host.clone(), order)));
            return effects;
        }
        let report = message::ImageState {
            manifest: image.as_bytes().to_vec(),
            state: message::StageState::Failed.into(),
            reason: Reason::NeedsNewerAgent.as_str().to_owned(),
            message: "it is a stacked image, which the host's agent can't stage; upgrade the agent"
                .to_owned(),
            ..message::ImageState::default()
        };
        hosts.image(now, host, image, &report, None);
        effects.tell(Event::Reported {
            host: host.clone(),
            image,
            standing: Standing::Failed,
            held_bytes: 0,
        });
        effects
    }

    /// Makes the order for a host to stage an image. `None` when the host has the order already and goes on.
    pub(super) fn stage(
        &mut self,
        hosts: &Hosts,
        host: &HostId,
        image: Digest,
    ) -> Option<Arc<message::Order>> {
        self.tell(hosts, host, image, false)
    }

    /// Whether the host's agent can stage an image of this kind.
    fn can_stage(&self, hosts: &Hosts, host: &HostId, image: &Digest) -> bool {
        let wanted = self.images.get(image);
        hosts.get(host).is_none_or(|known| known.stages_stacked)
            || wanted.is_none_or(|of| of.want().layout.format() == Format::Flat)
    }

    /// As [`stage`](Self::stage). With `news_only`, a host that has the order isn't asked to try again.
    fn tell(
        &mut self,
        hosts: &Hosts,
        host: &HostId,
        image: Digest,
        news_only: bool,
    ) -> Option<Arc<message::Order>> {
        let wanted = self.images.get(&image)?;
        if !self.can_stage(hosts, host, &image) {
            return None;
        }
        let names = self.images.names_on(host).into_iter();
        let names = names.filter(|(_, (named, _))| *named == image);
        let names = names.map(|(reference, _)| reference).collect();
        let state = hosts.get(host).and_then(|known| known.state(&image));
        let said = Said {
            want: wanted.want(),
            recipe: wanted.recipe(),
            first: wanted.token_reference(),
            entitled: wanted.entitled(),
            token: self.tokens.get(&image),
        };
        self.orders.stage(host, names, said, state, news_only)
    }

    /// The order to stop staging an image. `keep`: the host keeps what it has of the image.
    pub(super) fn stop(&mut self, host: &HostId, image: Digest, keep: bool) -> message::Order {
        self.orders.stop(host, image, keep)
    }

    /// Tells the hosts of each image which hosts may have what the image holds, and its recipe, where these changed.
    pub(super) fn tell_news(&mut self, hosts: &Hosts) -> Effects {
        let mut effects = Effects::default();
        for image in self.orders.take_news() {
            for host in self.orders.hosts(&image) {
                let order = self.tell(hosts, &host, image, true);
                effects.send(order.map(|order| (host, order)));
            }
        }
        effects
    }

    /// Somebody asks for an image again. Hosts where the image failed or is gone try at once, and their pauses begin
    /// anew.
    pub(super) fn urge(&mut self, now: Moment, hosts: &mut Hosts, image: Digest) -> Effects {
        let mut effects = Effects::default();
        if !self.images.contains(&image) {
            return effects;
        }
        self.restages.forget(&image);
        self.images.forgive_recipe(&image);
        effects.tell(Event::Urged(image));
        for host in self.orders.hosts(&image) {
            let state = hosts.urged(now, &host, &image);
            if matches!(state, Some(HostState::Failed | HostState::Gone)) {
                let order = self.stage(hosts, &host, image);
                effects.send(order.map(|order| (host, order)));
            }
        }
        effects
    }

    /// A host lost an image. If the image is wanted there, it is ordered again after a pause.
    pub(super) fn lost(&mut self, now: Moment, host: &HostId, image: Digest) {
        let wanted = self.images.get(&image);
        if wanted.is_some_and(|wanted| wanted.selects(host))
            && let Some(pause) = self.restages.lost(now, host, image)
        {
            warn!(%host, %image, pause_s = pause.as_secs(), "wanted image is gone from a host; it is staged again");
        }
    }

    /// Orders images again that hosts lost some time ago, and that are still gone and wanted there.
    pub(super) fn restage(&mut self, now: Moment, hosts: &Hosts) -> Effects {
        let mut effects = Effects::default();
        for (host, image) in self.restages.take_due(now) {
            let state = hosts.get(&host).and_then(|known| known.state(&image));
            let wanted = self.images.get(&image);
            if state == Some(HostState::Gone) && wanted.is_some_and(|of| of.selects(&host)) {
                let order = self.stage(hosts, &host, image);
                effects.send(order.map(|order| (host, order)));
            }
        }
        effects
    }

    // ---- recipes ---------------------------------------------------------------------------------------------------

    /// Looks which recipes hosts have made, and who is to make one, if it is time to look.
    fn look_at_recipes(&mut self, now: Moment, members: &Members) -> Effects {
        let mut effects = Effects::default();
        let facts = (members.hosts(), members.sessions());
        for (image, decision) in self.fleet_recipes.look(now, facts, &self.images) {
            if let Some(changes) = self.images.fleet_recipe(&image, decision.recipe) {
                effects.append(self.follow(now, changes));
            }
            if let Some(host) = decision.ask {
                fleet_recipes::say_asked(&host, &image);
                self.metrics.recipes_asked.inc();
                effects.order(&host, order::make_recipe(image));
            }
        }
        effects
    }

    /// The plan goes on without an image's recipe. The plan is told again what is wanted, because it may have been told
    /// of the recipe meanwhile.
    pub(super) fn lose_recipe(
        &mut self,
        now: Moment,
        (image, recipe): (Digest, Digest),
        cause: RecipeLoss,
    ) -> Effects {
        let Some(changes) = self.images.lose_recipe(&image, &recipe) else {
            return Effects::default();
        };
        recipe_words::lost(image, recipe, cause, self.leases.bad(&recipe));
        self.follow(now, changes)
    }

    /// A host says that an image's recipe doesn't fit the registry's bytes of a content. `leased`: the host has the
    /// content's lease, so it read them. Returns what the plan is told, which decides whose word is enough.
    pub(super) fn doubt(&self, (host, doubt): (&HostId, &Doubt), leased: bool) -> Option<Event> {
        let heard = match leased {
            true => self.images.may_doubt(doubt),
            false => Heard::NotLeased,
        };
        recipe_words::doubted(host, doubt, heard);
        (heard == Heard::News).then(|| Event::RecipeDoubted {
            host: host.clone(),
            image: doubt.image,
            content: doubt.content,
            chunk: doubt.chunk.0,
        })
    }

    /// Enough hosts say that an image's recipe doesn't fit the registry's bytes of a content. All hosts that were
    /// ordered to stage the image are told.
    pub(super) fn leave_recipe(&mut self, now: Moment, left: RecipeLeft) -> Effects {
        let Some((doubt, changes)) = self.images.leave_recipe(left) else {
            return Effects::default();
        };
        recipe_words::left(&doubt);
        self.metrics.recipe_doubts.inc();
        let mut effects = self.follow(now, changes);
        let told = Arc::new(order::recipe_doubt(&doubt));
        let hosts = self.orders.hosts(&doubt.image).into_iter();
        effects.send(hosts.map(|host| (host, told.clone())));
        effects
    }

    // ---- registries ------------------------------------------------------------------------------------------------

    /// A host reports on a lease of a content. The plan is told.
    pub(super) fn lease(
        &mut self,
        now: Moment,
        (host, content): (&HostId, Digest),
        lease: &message::LeaseState,
        plan: &mut Plan,
    ) {
        let of = (host, content);
        let token = self.leases.heard(now, of, lease, plan, &self.images);
        if token == Token::Refused {
            self.tokens.refused(now, self.images.with(&content));
        }
    }

    /// A host takes back the links that it made of a content, from chunk `from` on. The plan is told.
    pub(super) fn retracted(
        &mut self,
        now: Moment,
        (host, content): (&HostId, Digest),
        from: u32,
        plan: &mut Plan,
    ) {
        self.leases.retracted(now, (host, content), from, plan);
    }

    /// Pull tokens that are to be asked for now.
    pub(super) fn tokens_due(&mut self, now: Moment) -> Vec<TokenAsk> {
        let due = self.tokens.take_due(now).into_iter();
        let asks = due.filter_map(|image| {
            let wanted = self.images.get(&image)?;
            let reference = wanted.token_reference().cloned();
            let secret = reference.as_ref();
            let secret = secret.and_then(|name| wanted.want().secrets.get(name));
            Some(TokenAsk {
                image,
                secret: secret.cloned(),
                reference,
            })
        });
        asks.collect()
    }

    /// An attempt at a pull token ended. `granted` is `None` when the attempt failed. Hosts that aren't done get the
    /// new token.
    pub(super) fn take_token(
        &mut self,
        now: Moment,
        hosts: &Hosts,
        image: Digest,
        granted: Option<Granted>,
    ) -> Effects {
        let mut effects = Effects::default();
        let Given::New { after_refusal } = self.tokens.take(now, &image, granted) else {
            return effects;
        };
        if after_refusal {
            // the registry may give with this token what it refused with the one before
            effects.tell(Event::Urged(image));
        }
        self.orders.changed(&image);
        for host in self.orders.hosts(&image) {
            let known = hosts.get(&host);
            if known.is_none_or(|known| !known.is_present(&image)) {
                let order = self.stage(hosts, &host, image);
                effects.send(order.map(|order| (host, order)));
            }
        }
        effects
    }

    /// When something is due.
    pub(super) fn due(&self) -> Option<Moment> {
        let dues = [self.tokens.due(), self.restages.due()];
        dues.into_iter().flatten().min()
    }

    /// Looks at how fast bytes come now, and at the recipes that hosts have made.
    pub(super) fn look(&mut self, now: Moment, members: &Members) -> Effects {
        self.paces.look(now, members.hosts(), &self.images);
        self.look_at_recipes(now, members)
    }

    /// How fast bytes came so far.
    pub(super) const fn paces(&self) -> &Paces {
        &self.paces
    }

    /// Keeps what was predicted when an image's staging began.
    pub(super) fn predicted(&mut self, image: &Digest, predicted: Predicted) {
        self.images.predicted(image, predicted);
    }

    pub(super) const fn images(&self) -> &Images {
        &self.images
    }

    pub(super) const fn leases(&self) -> &Leases {
        &self.leases
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;

    use super::{
        super::{effect::Effect, presence::Presence},
        *,
    };
    use crate::{
        config::{Credentials as Login, Origin},
        resolve::PullToken,
        wants::tests::want,
    };

    const REGISTRY: &str = "127.0.0.1:5000";

    /// A fleet that stages images of [`REGISTRY`]; the registry's tokens are handed down.
    struct World {
        staging: Staging,
        hosts: Hosts,
        presence: Presence,
    }

    impl World {
        fn new(hosts: &[&str]) -> Self {
            let login = Login {
                username: "robot".into(),
                password_file: "/nonexistent".into(),
            };
            let origin = Origin {
                credentials: [(REGISTRY.to_owned(), login)].into(),
                plain_http: [REGISTRY.to_owned()].into(),
                hand_down_tokens: true,
                ..Origin::default()
            };
            let registries = Arc::new(Registries::new(origin).unwrap());
            let images = Images::new(1, true);
            let dir = tempfile::tempdir().unwrap();
            let config = super::super::tests::config(dir.path(), false);
            let mut this = Self {
                staging: Staging::new(images, registries, Metrics::new().0, &config),
                hosts: Hosts::default(),
                presence: Presence::new(watch::channel(Arc::default()).0),
            };
            for host in hosts {
                let host: HostId = host.parse().unwrap();
                this.hosts.know(&host, "");
                let hello = message::Hello {
                    roster_epoch: Some(0),
                    ..message::Hello::default()
                };
                this.staging.connected(&host, &hello);
            }
            this
        }

        fn enter(&mut self, want: Want) -> Vec<Effect> {
            let at = world_at(0, &self.hosts, &self.presence);
            self.staging.enter(at, want).into_iter().collect()
        }

        /// Orders every host to stage the image.
        fn order(&mut self, image: Digest) {
            for host in self.hosts.ids() {
                assert!(self.staging.stage(&self.hosts, host, image).is_some());
            }
        }

        fn reports(&mut self, host: &str, image: Digest, state: message::StageState) {
            let report = message::ImageState {
                manifest: image.as_bytes().to_vec(),
                state: state.into(),
                ..message::ImageState::default()
            };
            let host = host.parse().unwrap();
            self.hosts.image(at(0), &host, image, &report, None);
        }
    }

    fn world_at<'a>(seconds: u64, hosts: &'a Hosts, presence: &'a Presence) -> At<'a> {
        At {
            now: at(seconds),
            unix_ms: 1_000 * (seconds + 1),
            hosts,
            presence,
        }
    }

    fn at(seconds: u64) -> Moment {
        Moment::START + Duration::from_secs(seconds)
    }

    fn ordered(effects: impl IntoIterator<Item = Effect>) -> Vec<String> {
        let hosts = effects.into_iter().filter_map(|effect| match effect {
            Effect::Order(host, _) => Some(host.to_string()),
            _ => None,
        });
        hosts.collect()
    }

    fn token() -> Option<Granted> {
        Some(Granted::Token(PullToken {
            authorization: "Bearer x".into(),
            expires_in: Duration::from_secs(300),
        }))
    }

    #[test]
    fn a_new_token_reaches_the_hosts_that_arent_done() {
        let mut world = World::new(&["a", "b"]);
        let image = want("one", 1, 1 << 20);
        let digest = image.digest();
        world.enter(image.clone());
        let asks = world.staging.tokens_due(at(0));
        assert_eq!((asks.len(), asks[0].image), (1, digest));
        assert_eq!(asks[0].reference.as_ref(), image.references.first());
        world.order(digest);
        world.reports("a", digest, message::StageState::Present);
        world.reports("b", digest, message::StageState::Staging);
        let (staging, hosts) = (&mut world.staging, &world.hosts);
        let effects = staging.take_token(at(1), hosts, digest, token());
        assert_eq!(ordered(effects), ["b"]);
        assert_eq!(world.staging.due(), Some(at(241)));
    }

    #[test]
    fn an_image_that_is_over_leaves_nothing_due_and_its_token_nobody_to_go_to() {
        let mut world = World::new(&["a"]);
        let image = want("one", 1, 1 << 20);
        let (digest, host) = (image.digest(), "a".parse().unwrap());
        let name = image.references.first().unwrap().clone();
        world.enter(image);
        world.order(digest);
        world.staging.tokens_due(at(0));
        world.staging.lost(at(0), &host, digest);
        assert!(world.staging.due().is_some());
        let at_cancel = world_at(1, &world.hosts, &world.presence);
        assert!(world.staging.cancel(at_cancel, &name).is_ok());
        assert_eq!(world.staging.due(), None);
        let (staging, hosts) = (&mut world.staging, &world.hosts);
        let effects = staging.take_token(at(2), hosts, digest, token());
        assert!(effects.is_empty());
        assert!(staging.stage(hosts, &host, digest).is_none());
    }

    #[test]
    fn a_lost_image_is_ordered_again_where_it_is_wanted_and_still_gone() {
        let mut world = World::new(&["a", "b", "c"]);
        let selected = ["a", "b"].map(|host| host.parse::<HostId>().unwrap());
        let image = Want {
            hosts: Some(selected.into()),
            ..want("one", 1, 1 << 20)
        };
        let digest = image.digest();
        world.enter(image);
        world.order(digest);
        world.staging.tokens_due(at(0));
        for host in ["a", "b", "c"] {
            world.reports(host, digest, message::StageState::Gone);
            world.staging.lost(at(0), &host.parse().unwrap(), digest);
        }
        world.reports("b", digest, message::StageState::Staging);
        let effects = world.staging.restage(at(0), &world.hosts);
        assert!(effects.is_empty(), "it is too early");
        let effects = world.staging.restage(at(1), &world.hosts);
        assert_eq!(ordered(effects), ["a"]);
    }

    #[test]
    fn an_image_whose_names_are_anothers_isnt_ordered_again_where_it_is_lost() {
        let mut world = World::new(&["a"]);
        let image = want("one", 1, 1 << 20);
        let (digest, host) = (image.digest(), "a".parse().unwrap());
        let later = Want {
            references: image.references.clone(),
            ..want("two", 2, 1 << 20)
        };
        world.enter(image);
        world.order(digest);
        world.reports("a", digest, message::StageState::Gone);
        // it is lost before its name is asked for anew, and once more after that
        world.staging.lost(at(0), &host, digest);
        world.enter(later);
        world.staging.lost(at(1), &host, digest);
        let due = at(60 * 60);
        let effects = world.staging.restage(due, &world.hosts);
        assert!(effects.is_empty(), "nothing would name it");
    }

    #[test]
    fn whoever_asks_again_has_failed_hosts_try_at_once() {
        let mut world = World::new(&["a", "b"]);
        let image = want("one", 1, 1 << 20);
        let digest = image.digest();
        let unknown = world.staging.urge(at(0), &mut world.hosts, digest);
        assert!(unknown.is_empty());
        world.enter(image);
        world.order(digest);
        world.reports("a", digest, message::StageState::Failed);
        world.reports("b", digest, message::StageState::Staging);
        let effects = world.staging.urge(at(1), &mut world.hosts, digest);
        let effects: Vec<Effect> = effects.into_iter().collect();
        assert!(matches!(effects[0], Effect::Tell(Event::Urged(image)) if image == digest));
        assert_eq!(ordered(effects), ["a"]);
    }

    #[test]
    fn hosts_are_told_once_that_others_may_have_their_image() {
        let mut world = World::new(&["a", "b"]);
        let only = |host: &str| Want {
            hosts: Some([host.parse().unwrap()].into()),
            ..want("one", 1, 1 << 20)
        };
        let digest = only("a").digest();
        world.enter(only("a"));
        let first: HostId = "a".parse().unwrap();
        assert!(world.staging.stage(&world.hosts, &first, digest).is_some());
        let none = world.staging.tell_news(&world.hosts);
        assert!(none.is_empty());
        world.enter(only("b"));
        let told = world.staging.tell_news(&world.hosts);
        assert_eq!(ordered(told), ["a"]);
        assert!(world.staging.tell_news(&world.hosts).is_empty());
    }

    #[test]
    fn a_tag_that_moved_is_written_down_for_both_images() {
        let mut world = World::new(&["a"]);
        let named = |seed: &str| Want {
            references: ["r.test/i:latest".to_owned()].into(),
            ..want(seed, 1, 1 << 20)
        };
        let old = named("old").digest();
        world.enter(named("old"));
        let effects = world.enter(named("new"));
        let dropped = effects
            .iter()
            .any(|effect| matches!(effect, Effect::Write(Write::Drop(image, _)) if *image == old));
        assert!(dropped, "{effects:?}");
        assert!(matches!(effects.last(), Some(Effect::NamesChanged)));
        let at_end = world_at(9, &world.hosts, &world.presence);
        assert!(world.staging.place_waiting(at_end).is_empty());
    }
}
