//! Orders to stage images: which orders each host was sent, and which of them it has. Hosts that are told the same
//! share one order.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use proto::{Digest, HostId, codec, image::Blob, message, recipe::Doubt};

use super::order::order;
use crate::{resolve::PullToken, view::HostState, wants::Want};

/// The orders to stage, by image, and what each host has of them.
#[derive(Debug, Default)]
pub(super) struct StageOrders {
    images: BTreeMap<Digest, Ordered>,
    /// Hosts with a session.
    hosts: BTreeMap<HostId, Taken>,
    /// Images whose orders say something else than those that were sent, of which hosts are to hear without being asked
    /// to try again: who may have the image, or its recipe.
    news_due: BTreeSet<Digest>,
}

/// The orders to stage one image.
#[derive(Debug, Default)]
struct Ordered {
    /// The orders that were made, by the references that they name.
    made: Vec<(Vec<String>, Made)>,
    hosts: BTreeSet<HostId>,
}

/// What the host of a session has.
#[derive(Debug)]
struct Taken {
    /// The images whose manifests the host has, each with the number of the last order that the host has of it: from
    /// its hello, and from the orders since.
    has: BTreeMap<Digest, u64>,
    /// Whether the host can say that it lacks a manifest. A host of an earlier version can't, and gets the whole order
    /// each time.
    says: bool,
}

/// What an order says of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Said<'a> {
    pub(super) want: &'a Want,
    /// The recipe that hosts can get: from the registry, or from each other.
    pub(super) recipe: Option<Blob>,
    /// The reference by which hosts ask the registry; the token is for its repository.
    pub(super) first: Option<&'a String>,
    /// Hosts that may have what the image holds; `None`: all.
    pub(super) entitled: Option<&'a BTreeSet<HostId>>,
    pub(super) token: Option<&'a PullToken>,
}

/// The orders to all hosts that shall hold an image under the same names.
#[derive(Clone, Debug)]
struct Made {
    /// A hash of everything that the orders say except the token. A host that has an order with this number needs the
    /// order again only for a new token.
    number: u64,
    with_token: bool,
    whole: Arc<message::Order>,
    /// The same order without the manifest, for hosts that have the manifest.
    brief: Arc<message::Order>,
}

impl StageOrders {
    /// A session began. The host has these images, each by the order with this number. `says`: the host can say that it
    /// lacks a manifest.
    pub(super) fn connected(&mut self, host: &HostId, has: BTreeMap<Digest, u64>, says: bool) {
        self.hosts.insert(host.clone(), Taken { has, says });
        self.nothing_ordered(host);
    }

    /// The host has no session any more.
    pub(super) fn disconnected(&mut self, host: &HostId) {
        self.hosts.remove(host);
    }

    /// The host isn't part of the fleet any more.
    pub(super) fn left(&mut self, host: &HostId) {
        self.hosts.remove(host);
        self.nothing_ordered(host);
    }

    fn nothing_ordered(&mut self, host: &HostId) {
        for ordered in self.images.values_mut() {
            ordered.hosts.remove(host);
        }
    }

    /// What the orders of this image say has changed, so they are made anew.
    pub(super) fn changed(&mut self, image: &Digest) {
        if let Some(ordered) = self.images.get_mut(image) {
            ordered.made.clear();
        }
    }

    /// Which hosts may have what the image holds, or the image's recipe, has changed. The hosts that were ordered to
    /// stage the image are to be told.
    pub(super) fn news(&mut self, image: Digest) {
        self.changed(&image);
        self.news_due.insert(image);
    }

    /// The images of which there are news for the hosts that were ordered to stage them. Each is returned once.
    pub(super) fn take_news(&mut self) -> BTreeSet<Digest> {
        std::mem::take(&mut self.news_due)
    }

    /// The image isn't wanted any more.
    pub(super) fn forget(&mut self, image: &Digest) {
        self.images.remove(image);
    }

    /// A full report of the host names these images and no others. So the host has no manifest of any other image.
    pub(super) fn reported(&mut self, host: &HostId, images: &BTreeSet<Digest>) {
        if let Some(taken) = self.hosts.get_mut(host) {
            taken.has.retain(|image, _| images.contains(image));
        }
    }

    /// The host is told the names of its images, and drops every image without a name. A dropped image has to be
    /// ordered again when it is wanted again.
    pub(super) fn named(&mut self, host: &HostId, named: impl Fn(&Digest) -> bool) {
        if let Some(taken) = self.hosts.get_mut(host) {
            taken.has.retain(|image, order| named(image) || *order == 0);
        }
    }

    /// Hosts that were ordered to stage the image.
    pub(super) fn hosts(&self, image: &Digest) -> Vec<HostId> {
        let ordered = self.images.get(image);
        ordered.map_or_else(Vec::new, |ordered| ordered.hosts.iter().cloned().collect())
    }

    /// Makes the order for a host to stage an image under these names. `None` when the host has the order already and
    /// goes on, or has no session. `state` is the image's state on the host. With `news_only`, a host that has the
    /// order isn't asked to try again.
    pub(super) fn stage(
        &mut self,
        host: &HostId,
        names: Vec<String>,
        said: Said<'_>,
        state: Option<HostState>,
        news_only: bool,
    ) -> Option<Arc<message::Order>> {
        let image = said.want.digest();
        let ordered = self.images.entry(image).or_default();
        ordered.hosts.insert(host.clone());
        let made = ordered.made_for(names, said);
        let taken = self.hosts.get_mut(host)?;
        let has = taken.has.get(&image).copied();
        // a host that can't go on is asked to try again; a host that isn't done needs each new token
        let goes_on = match state {
            Some(HostState::Present) => true,
            Some(HostState::Queued | HostState::Staging | HostState::Installing) => {
                !made.with_token
            }
            Some(HostState::Failed | HostState::Gone | HostState::Waiting) | None => false,
        };
        if has == Some(made.number) && (goes_on || news_only) {
            return None;
        }
        let order = match has {
            Some(_) => made.brief.clone(),
            None => made.whole.clone(),
        };
        if taken.says {
            taken.has.insert(image, made.number);
        }
        Some(order)
    }

    /// The order to stop staging an image. `keep`: the host keeps what it has of the image.
    pub(super) fn stop(&mut self, host: &HostId, image: Digest, keep: bool) -> message::Order {
        if let Some(ordered) = self.images.get_mut(&image) {
            // the host needs no new pull token of this image any more
            ordered.hosts.remove(host);
        }
        if let Some(taken) = self.hosts.get_mut(host) {
            taken.has.remove(&image);
        }
        order(message::order::Kind::Cancel(message::CancelOrder {
            manifest_digest: image.as_bytes().to_vec(),
            keep,
        }))
    }
}

impl Ordered {
    /// The orders to the hosts on which these references name the image. They are made once for all such hosts.
    fn made_for(&mut self, names: Vec<String>, said: Said<'_>) -> &Made {
        let known = self.made.iter().position(|(known, _)| *known == names);
        let at = known.unwrap_or_else(|| {
            let mut references = names.clone();
            references.sort_by_key(|reference| Some(reference) != said.first);
            self.made.push((names, Made::new(references, said)));
            self.made.len() - 1
        });
        &self.made[at].1
    }
}

impl Made {
    fn new(references: Vec<String>, said: Said<'_>) -> Self {
        let Said {
            want,
            recipe,
            entitled,
            token,
            ..
        } = said;
        let entitled = entitled.into_iter().flatten();
        let mut entitled_hosts: Vec<u64> = entitled.map(|host| host.key().0).collect();
        entitled_hosts.sort_unstable();
        let mut stage = message::StageOrder {
            manifest_digest: want.digest().as_bytes().to_vec(),
            references,
            media_type: want.media_type.clone(),
            plain_http: want.plain_http,
            recipe: recipe.map(|recipe| message::RecipeFile {
                digest: recipe.digest.as_bytes().to_vec(),
                size: recipe.size,
                made_by_hosts: want.recipe_of_fleet,
            }),
            recipe_doubts: doubts(want, recipe)
                .map(|doubt| doubt.to_message())
                .collect(),
            entitled_hosts,
            ..message::StageOrder::default()
        };
        // without a manifest, the order is far below the limit of a message
        let text = codec::encode(&order(message::order::Kind::Stage(stage.clone())));
        let digest = Digest::of(&text.unwrap_or_default());
        let first = digest.as_bytes().first_chunk();
        stage.order = first.map_or(1, |bytes| u64::from_be_bytes(*bytes).max(1));
        stage.token = token.map(|token| message::PullToken {
            authorization: token.authorization.expose().to_owned(),
            expires_in_seconds: token.expires_in.as_secs(),
        });
        let whole = message::StageOrder {
            manifest: want.manifest.to_vec(),
            ..stage.clone()
        };
        Self {
            number: stage.order,
            with_token: token.is_some(),
            whole: Arc::new(order(message::order::Kind::Stage(whole))),
            brief: Arc::new(order(message::order::Kind::Stage(stage))),
        }
    }
}

/// What is doubted of an image's recipe.
fn doubts(want: &Want, recipe: Option<Blob>) -> impl Iterator<Item = Doubt> {
    let doubts = want.recipe_doubts.iter();
    let of = recipe.map(|recipe| (want.digest(), recipe.digest));
    of.into_iter().flat_map(move |(image, recipe)| {
        doubts.clone().map(move |(content, chunk)| Doubt {
            image,
            recipe,
            content: *content,
            chunk: *chunk,
        })
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proto::ChunkIndex;

    use super::*;
    use crate::wants::tests::{recipe, want};

    fn id(name: &str) -> HostId {
        name.parse().unwrap()
    }

    fn said<'a>(want: &'a Want, token: Option<&'a PullToken>) -> Said<'a> {
        Said {
            want,
            recipe: want.recipe,
            first: want.references.first(),
            entitled: None,
            token,
        }
    }

    fn names(want: &Want) -> Vec<String> {
        want.references.iter().cloned().collect()
    }

    /// Whether an order carries the manifest.
    fn is_whole(order: &message::Order) -> bool {
        match &order.kind {
            Some(message::order::Kind::Stage(stage)) => !stage.manifest.is_empty(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_host_gets_the_manifest_once_and_the_same_order_again_only_where_it_cant_go_on() {
        let (mut orders, image, host) = (StageOrders::default(), want("a", 1, 1 << 20), id("a"));
        orders.connected(&host, BTreeMap::new(), true);
        let mut stage = |state, news_only| {
            let said = said(&image, None);
            orders.stage(&host, names(&image), said, state, news_only)
        };
        assert!(is_whole(&stage(None, false).unwrap()));
        for state in [HostState::Present, HostState::Queued, HostState::Staging] {
            assert_eq!(stage(Some(state), false), None, "{state:?}");
        }
        for state in [HostState::Failed, HostState::Gone] {
            assert!(!is_whole(&stage(Some(state), false).unwrap()));
            assert_eq!(stage(Some(state), true), None, "it is no news");
        }
    }

    #[test]
    fn every_new_token_reaches_the_hosts_that_arent_done() {
        let (mut orders, image, host) = (StageOrders::default(), want("a", 1, 1 << 20), id("a"));
        let token = PullToken {
            authorization: "Bearer x".into(),
            expires_in: Duration::from_secs(60),
        };
        orders.connected(&host, BTreeMap::new(), true);
        let mut stage = |state| {
            let said = said(&image, Some(&token));
            orders.stage(&host, names(&image), said, Some(state), false)
        };
        assert!(stage(HostState::Waiting).is_some());
        assert!(stage(HostState::Staging).is_some());
        assert_eq!(stage(HostState::Present), None);
    }

    #[test]
    fn hosts_with_the_same_names_share_an_order_until_what_it_says_changes() {
        let (mut orders, image) = (StageOrders::default(), want("a", 1, 1 << 20));
        let stage = |orders: &mut StageOrders, host: &str, names: Vec<String>| {
            orders.connected(&id(host), BTreeMap::new(), true);
            let said = said(&image, None);
            orders.stage(&id(host), names, said, None, false).unwrap()
        };
        let one = stage(&mut orders, "a", names(&image));
        assert!(Arc::ptr_eq(&one, &stage(&mut orders, "b", names(&image))));
        let other = stage(&mut orders, "c", vec!["r.test/other:1".into()]);
        assert!(!Arc::ptr_eq(&one, &other));
        orders.changed(&image.digest());
        let anew = stage(&mut orders, "d", names(&image));
        assert!(!Arc::ptr_eq(&one, &anew) && one == anew, "it says the same");
    }

    #[test]
    fn another_recipe_or_another_doubt_makes_another_order() {
        let (mut orders, host) = (StageOrders::default(), id("a"));
        let mut image = want("a", 1, 1 << 20);
        orders.connected(&host, BTreeMap::new(), true);
        let mut news = |image: &Want| {
            orders.changed(&image.digest());
            let (names, said) = (names(image), said(image, None));
            let order = orders.stage(&host, names, said, Some(HostState::Staging), true)?;
            match order.kind.clone() {
                Some(message::order::Kind::Stage(stage)) => {
                    Some((stage.recipe, stage.recipe_doubts))
                }
                other => panic!("{other:?}"),
            }
        };
        let content = image.layout.contents()[0].digest;
        assert_eq!(news(&image), Some((None, Vec::new())));
        assert_eq!(news(&image), None, "it is no news");
        let found = recipe("a");
        image.recipe = Some(found);
        let file = message::RecipeFile {
            digest: found.digest.as_bytes().to_vec(),
            size: found.size,
            made_by_hosts: false,
        };
        assert_eq!(news(&image), Some((Some(file.clone()), Vec::new())));
        assert_eq!(news(&image), None);
        image.recipe_doubts.insert(content, ChunkIndex(3));
        let doubt = Doubt {
            image: image.digest(),
            recipe: found.digest,
            content,
            chunk: ChunkIndex(3),
        };
        assert_eq!(news(&image), Some((Some(file), vec![doubt.to_message()])));
        assert_eq!(news(&image), None);
        // nothing is doubted of no recipe
        image.recipe = None;
        assert_eq!(news(&image), Some((None, Vec::new())));
    }

    #[test]
    fn what_a_host_says_that_it_has_counts_until_it_is_told_to_stop_or_reports_otherwise() {
        let (mut orders, image, host) = (StageOrders::default(), want("a", 1, 1 << 20), id("a"));
        let digest = image.digest();
        let has = BTreeMap::from([(digest, 7)]);
        let brief = |orders: &mut StageOrders| {
            let order = orders.stage(&host, names(&image), said(&image, None), None, false);
            !is_whole(&order.unwrap())
        };
        orders.connected(&host, has.clone(), true);
        assert!(brief(&mut orders));
        orders.stop(&host, digest, false);
        assert!(orders.hosts(&digest).is_empty() && !brief(&mut orders));
        orders.reported(&host, &[digest].into());
        assert!(brief(&mut orders));
        orders.reported(&host, &BTreeSet::new());
        assert!(!brief(&mut orders));
        orders.named(&host, |_| true);
        assert!(brief(&mut orders));
        orders.named(&host, |_| false);
        assert!(!brief(&mut orders));
        // a host of a version that can't say that it lacks the manifest gets it each time
        orders.connected(&host, BTreeMap::new(), false);
        assert!(!brief(&mut orders) && !brief(&mut orders));
    }

    #[test]
    fn hosts_are_ordered_by_session_and_remembered_until_the_image_is_forgotten() {
        let (mut orders, image) = (StageOrders::default(), want("a", 1, 1 << 20));
        let digest = image.digest();
        for host in ["a", "b"] {
            orders.connected(&id(host), BTreeMap::new(), true);
            orders.stage(&id(host), names(&image), said(&image, None), None, false);
        }
        // a host without a session gets no order, but is among the hosts to tell when it comes
        assert_eq!(
            orders.stage(&id("c"), names(&image), said(&image, None), None, false),
            None
        );
        assert_eq!(orders.hosts(&digest), ["a", "b", "c"].map(id));
        orders.connected(&id("a"), BTreeMap::new(), true);
        orders.left(&id("b"));
        assert_eq!(orders.hosts(&digest), [id("c")]);
        orders.news(digest);
        assert_eq!(orders.take_news(), [digest].into());
        assert!(orders.take_news().is_empty());
        orders.forget(&digest);
        assert!(orders.hosts(&digest).is_empty());
    }
}
