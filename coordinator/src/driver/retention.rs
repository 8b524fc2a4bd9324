//! Old images: the fleet's rule about them, what hosts are told of it, and what hosts say would go.
//!
//! Hosts are told a rule and never what to remove: each host decides by what lies on its disk. In a cluster a host is
//! also told which images its Pods and pools refer to. While that isn't known, hosts aren't told the rule, so that they
//! remove nothing by it. A coordinator without a rule and without a cluster tells hosts nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use proto::{
    HostId, Moment,
    limits::{MAX_OLD_IMAGES, MAX_OLD_REFERENCES},
    message::{self, order::Kind},
    retention::{MAX_IN_USE, Rule},
};
use tokio::sync::oneshot;
use tracing::debug;

use super::{
    ask::{OldImagesError, Users},
    order::{Addressed, order},
};
use crate::{
    config::Config,
    progress::clean,
    view::{HostOldImages, OldImageView, OldImagesReply, RuleSource, RuleView},
};

/// Hosts answer a question within this time, or the answer lacks them. A host looks at the files of its images, which
/// takes milliseconds, and a busy disk makes it seconds.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// The most bytes of names and reasons that are kept of all answers to one question. Beyond it, images aren't named.
const MAX_ANSWER_BYTES: usize = 16 << 20;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Retention {
    rule: Option<Rule>,
    cluster: Cluster,
    /// The hosts with a session that take orders about old images, and what each was told last.
    hosts: BTreeMap<HostId, message::Retention>,
    /// The number of the last question.
    last: u64,
    question: Option<Running>,
}

/// What is known of the cluster's Pods.
#[derive(Debug)]
enum Cluster {
    /// There is no cluster.
    Absent,
    /// It isn't known which images Pods refer to.
    Unknown,
    Known(Users),
}

/// A question that hosts are answering.
#[derive(Debug)]
struct Running {
    number: u64,
    /// The hosts that haven't answered.
    missing: BTreeSet<HostId>,
    answers: BTreeMap<HostId, HostOldImages>,
    /// Bytes of names and reasons in the answers.
    bytes: usize,
    due: Moment,
    reply: oneshot::Sender<Result<OldImagesReply, OldImagesError>>,
}

/// A question of an operator.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) rule: Option<Rule>,
    pub(super) hosts: Vec<HostId>,
    pub(super) reply: oneshot::Sender<Result<OldImagesReply, OldImagesError>>,
}

impl Retention {
    /// By these settings.
    pub(super) const fn of(config: &Config) -> Self {
        Self::new(config.retention, config.cluster.is_some())
    }

    /// The fleet's rule, if it has one.
    pub(super) const fn new(rule: Option<Rule>, in_cluster: bool) -> Self {
        Self {
            rule,
            cluster: match in_cluster {
                true => Cluster::Unknown,
                false => Cluster::Absent,
            },
            hosts: BTreeMap::new(),
            last: 0,
            question: None,
        }
    }

    // ---- the rule --------------------------------------------------------------------------------------------------

    /// A session of a host began. `takes`: the host takes orders about old images.
    pub(super) fn connected(&mut self, host: &HostId, takes: bool) -> Option<message::Order> {
        self.hosts.remove(host);
        if !takes {
            return None;
        }
        let told = self.word(host);
        // a host that was told nothing in this session has no rule of the fleet
        let says = told != message::Retention::default();
        self.hosts.insert(host.clone(), told.clone());
        says.then(|| order(Kind::Retention(told)))
    }

    /// The host has no session any more.
    pub(super) fn disconnected(&mut self, host: &HostId) {
        self.hosts.remove(host);
        self.gave_none(host, "its session ended before it answered");
    }

    /// The cluster's Pods and pools refer to these images; `None`: that isn't known now. Returns the orders for hosts
    /// that have to hear of it.
    pub(super) fn used(&mut self, users: Option<Users>) -> Vec<Addressed> {
        self.cluster = users.map_or(Cluster::Unknown, Cluster::Known);
        let hosts: Vec<HostId> = self.hosts.keys().cloned().collect();
        let mut orders = Vec::new();
        for host in hosts {
            let word = self.word(&host);
            let told = self.hosts.insert(host.clone(), word.clone());
            if told.as_ref() != Some(&word) {
                orders.push((host, Arc::new(order(Kind::Retention(word)))));
            }
        }
        orders
    }

    /// What a host is to be told.
    fn word(&self, host: &HostId) -> message::Retention {
        let rule = self.rule.map(Rule::to_message);
        match &self.cluster {
            Cluster::Absent => message::Retention { rule, in_use: None },
            Cluster::Unknown => message::Retention::default(),
            Cluster::Known(users) => match users.get(host) {
                // the list is older than the host: what Pods refer to there isn't known yet
                None => message::Retention::default(),
                Some(used) => message::Retention {
                    rule,
                    in_use: Some(message::InUse {
                        references: used.iter().take(MAX_IN_USE).cloned().collect(),
                        more: used.len() > MAX_IN_USE,
                    }),
                },
            },
        }
    }

    // ---- questions -------------------------------------------------------------------------------------------------

    /// Asks hosts which of their old images would go. Returns the orders.
    pub(super) fn ask(&mut self, now: Moment, question: Question) -> Vec<Addressed> {
        let Question { rule, hosts, reply } = question;
        if self
            .question
            .as_ref()
            .is_some_and(|of| !of.reply.is_closed())
        {
            drop(reply.send(Err(OldImagesError::Busy)));
            return Vec::new();
        }
        self.last += 1;
        let asked = Arc::new(order(Kind::OldImagesAsked(message::OldImagesAsked {
            number: self.last,
            rule: rule.map(Rule::to_message),
        })));
        let mut running = Running {
            number: self.last,
            missing: BTreeSet::new(),
            answers: BTreeMap::new(),
            bytes: 0,
            due: now + ANSWERED_WITHIN,
            reply,
        };
        let mut orders = Vec::new();
        for host in hosts {
            if self.hosts.contains_key(&host) {
                orders.push((host.clone(), asked.clone()));
                running.missing.insert(host);
            } else {
                running.note(
                    &host,
                    "it isn't connected, or its agent is of an earlier version",
                );
            }
        }
        self.question = Some(running);
        self.end_if_answered();
        orders
    }

    /// A host answered.
    pub(super) fn answered(&mut self, host: &HostId, answer: &message::OldImages) {
        let Some(running) = &mut self.question else {
            return;
        };
        if running.number != answer.number || !running.missing.remove(host) {
            debug!(%host, "host answers a question about old images that nobody asked");
            return;
        }
        let left = MAX_ANSWER_BYTES.saturating_sub(running.bytes);
        let (shown, bytes) = shown(host, answer, left);
        running.bytes += bytes;
        running.answers.insert(host.clone(), shown);
        self.end_if_answered();
    }

    /// When hosts that haven't answered are waited for no longer.
    pub(super) fn due(&self) -> Option<Moment> {
        self.question.as_ref().map(|running| running.due)
    }

    /// Ends a question that was asked too long ago.
    pub(super) fn tidy(&mut self, now: Moment) {
        let Some(running) = self.question.as_mut().filter(|of| of.due <= now) else {
            return;
        };
        for host in std::mem::take(&mut running.missing) {
            running.note(&host, "it gave no answer in time");
        }
        self.end_if_answered();
    }

    fn gave_none(&mut self, host: &HostId, note: &str) {
        if let Some(running) = &mut self.question
            && running.missing.remove(host)
        {
            running.note(host, note);
            self.end_if_answered();
        }
    }

    fn end_if_answered(&mut self) {
        let Some(running) = self.question.take_if(|of| of.missing.is_empty()) else {
            return;
        };
        let reply = OldImagesReply {
            fleet_rule: self.rule.map(view),
            hosts: running.answers.into_values().collect(),
        };
        // whoever asked may have gone
        drop(running.reply.send(Ok(reply)));
    }
}

impl Running {
    /// The host gave no answer.
    fn note(&mut self, host: &HostId, note: &str) {
        let silent = HostOldImages {
            host: host.to_string(),
            note: note.to_owned(),
            ..HostOldImages::default()
        };
        self.answers.insert(host.clone(), silent);
    }
}

fn view(rule: Rule) -> RuleView {
    RuleView {
        keep_images: rule.images(),
        keep_days: rule.days(),
    }
}

/// A host's answer as it is shown, and the bytes of its names and reasons. Images are named while these have no more
/// than `most` bytes.
fn shown(host: &HostId, answer: &message::OldImages, most: usize) -> (HostOldImages, usize) {
    let rule = answer.rule.map(Rule::parse);
    let mut bytes = 0;
    let images = answer.images.iter().take(MAX_OLD_IMAGES).map(|image| {
        let digest = message::digest(&image.manifest);
        let references = image.references.iter().take(MAX_OLD_REFERENCES);
        OldImageView {
            digest: digest.map_or_else(|_| String::new(), |digest| digest.to_string()),
            references: references.map(|name| clean(name)).collect(),
            bytes: image.bytes,
            goes: image.goes,
            why: clean(&image.why),
            goldens: image.goldens,
        }
    });
    let images = images.take_while(|image| {
        let names = image.references.iter().map(String::len).sum::<usize>();
        bytes += image.digest.len() + names + image.why.len();
        bytes <= most
    });
    let images: Vec<OldImageView> = images.collect();
    let named = u32::try_from(images.len()).unwrap_or(u32::MAX);
    let told = u32::try_from(answer.images.len()).unwrap_or(u32::MAX);
    let shown = HostOldImages {
        host: host.to_string(),
        answered: true,
        note: clean(&answer.note),
        rule: rule.and_then(Result::ok).flatten().map(view),
        source: match answer.source() {
            message::RuleSource::Unspecified => RuleSource::None,
            message::RuleSource::Host => RuleSource::Host,
            message::RuleSource::Fleet => RuleSource::Fleet,
            message::RuleSource::Asked => RuleSource::Asked,
        },
        going: answer.going,
        freed_bytes: answer.freed_bytes,
        left_bytes: answer.left_bytes,
        images,
        more: answer.more.saturating_add(told.saturating_sub(named)),
    };
    (shown, bytes.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> HostId {
        name.parse().unwrap()
    }

    fn rule() -> Option<Rule> {
        Rule::new(Some(2), Some(14)).unwrap()
    }

    fn said(order: &message::Order) -> &message::Retention {
        match &order.kind {
            Some(Kind::Retention(said)) => said,
            other => panic!("{other:?}"),
        }
    }

    fn users(host: &str, references: impl IntoIterator<Item = String>) -> Users {
        let mut users: Users = ["a", "b"].map(|host| (id(host), BTreeSet::new())).into();
        users.insert(id(host), references.into_iter().collect());
        users
    }

    #[test]
    fn a_fleet_without_a_rule_and_a_cluster_orders_nothing() {
        let mut retention = Retention::new(None, false);
        assert_eq!(retention.connected(&id("a"), true), None);
        let mut ruled = Retention::new(rule(), false);
        assert_eq!(ruled.connected(&id("old"), false), None);
        let order = ruled.connected(&id("a"), true).unwrap();
        let expected = message::Retention {
            rule: rule().map(Rule::to_message),
            in_use: None,
        };
        assert_eq!(*said(&order), expected);
    }

    #[test]
    fn in_a_cluster_the_rule_is_told_only_with_what_pods_use() {
        let mut retention = Retention::new(rule(), true);
        assert_eq!(retention.connected(&id("a"), true), None);
        assert_eq!(retention.connected(&id("b"), true), None);
        let name = || "r.io/o/i:1".to_owned();
        let told = retention.used(Some(users("a", [name()])));
        assert_eq!(told.len(), 2);
        let word = said(&told[0].1);
        assert_eq!(word.rule, rule().map(Rule::to_message));
        let in_use = word.in_use.clone().unwrap();
        assert!(in_use.references == [name()] && !in_use.more);
        assert_eq!(said(&told[1].1).in_use, Some(message::InUse::default()));
        assert!(retention.used(Some(users("a", [name()]))).is_empty());
        // another one on one host is told there alone, and whoever comes later hears of it
        let told = retention.used(Some(users("b", [name()])));
        assert_eq!(told.len(), 2, "one lost it, one has it");
        let again = retention.connected(&id("b"), true).unwrap();
        assert_eq!(said(&again).in_use.clone().unwrap().references, [name()]);
        // of a host that came after the list nobody knows yet what Pods need there
        assert_eq!(retention.connected(&id("c"), true), None);
        // more than a host is told
        let many = (0..=MAX_IN_USE).map(|n| format!("r.io/o/i:{n}"));
        let told = retention.used(Some(users("b", many)));
        let in_use = said(&told[0].1).in_use.clone().unwrap();
        assert!(in_use.references.len() == MAX_IN_USE && in_use.more);
        // the cluster isn't known any more: the rule is taken back
        let told = retention.used(None);
        assert_eq!(told.len(), 2);
        assert!(
            told.iter()
                .all(|(_, order)| *said(order) == message::Retention::default())
        );
        // a fleet without a rule tells what Pods use: the host's own rule goes by it
        let mut unruled = Retention::new(None, true);
        unruled.connected(&id("a"), true);
        let told = unruled.used(Some(users("a", [name()])));
        assert!(said(&told[0].1).rule.is_none() && said(&told[0].1).in_use.is_some());
    }

    type Answer = oneshot::Receiver<Result<OldImagesReply, OldImagesError>>;

    fn ask(retention: &mut Retention, now: Moment, hosts: &[&str]) -> (Vec<Addressed>, Answer) {
        let (reply, answer) = oneshot::channel();
        let hosts = hosts.iter().map(|host| id(host)).collect();
        let question = Question {
            rule: None,
            hosts,
            reply,
        };
        (retention.ask(now, question), answer)
    }

    fn number(orders: &[Addressed]) -> u64 {
        match &orders[0].1.kind {
            Some(Kind::OldImagesAsked(asked)) => asked.number,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_question_ends_with_the_last_answer_or_in_time() {
        let mut retention = Retention::new(rule(), false);
        for host in ["a", "b", "c"] {
            retention.connected(&id(host), true);
        }
        let start = Moment::START;
        let (orders, mut answer) = ask(&mut retention, start, &["a", "b", "c", "away"]);
        assert_eq!(orders.len(), 3);
        // one question at a time
        let (refused, mut busy) = ask(&mut retention, start, &["a"]);
        assert!(refused.is_empty());
        assert!(matches!(busy.try_recv(), Ok(Err(OldImagesError::Busy))));
        let number = number(&orders);
        let image = message::OldImage {
            manifest: vec![7; 32],
            references: vec!["r.io/o/i:1\u{1b}[2J".into(); 9],
            bytes: 5,
            goes: true,
            ..message::OldImage::default()
        };
        let said = message::OldImages {
            number,
            rule: rule().map(Rule::to_message),
            source: message::RuleSource::Fleet.into(),
            going: 40,
            freed_bytes: 200,
            images: vec![image; MAX_OLD_IMAGES + 1],
            more: 7,
            ..message::OldImages::default()
        };
        retention.answered(&id("away"), &said);
        let other = message::OldImages {
            number: number + 1,
            ..said.clone()
        };
        retention.answered(&id("a"), &other);
        retention.answered(&id("a"), &said);
        retention.disconnected(&id("b"));
        assert!(answer.try_recv().is_err());
        let due = retention.due().unwrap();
        retention.tidy(Moment(due.0 - 1));
        assert!(answer.try_recv().is_err());
        retention.tidy(due);
        let reply = answer.try_recv().unwrap().unwrap();
        assert_eq!(retention.due(), None);
        assert_eq!(reply.fleet_rule, rule().map(view));
        let [a, away, b, c] = &reply.hosts[..] else {
            panic!("{reply:?}");
        };
        assert!(a.answered && !away.answered && !b.answered && !c.answered);
        assert!(away.note.contains("isn't connected") && b.note.contains("session ended"));
        assert_eq!(c.note, "it gave no answer in time");
        assert_eq!(
            (a.source, a.going, a.freed_bytes),
            (RuleSource::Fleet, 40, 200)
        );
        assert_eq!((a.images.len(), a.more), (MAX_OLD_IMAGES, 8));
        assert_eq!(a.images[0].references.len(), MAX_OLD_REFERENCES);
        assert!(!a.images[0].references[0].contains('\u{1b}'));
        // the next question has another number, and one whose asker has gone gives way
        let (second, gone) = ask(&mut retention, due, &["a"]);
        drop(gone);
        let (third, mut answer) = ask(&mut retention, due, &["a"]);
        assert!(number < self::number(&second) && self::number(&second) < self::number(&third));
        retention.answered(
            &id("a"),
            &message::OldImages {
                number: self::number(&third),
                ..said
            },
        );
        assert_eq!(answer.try_recv().unwrap().unwrap().hosts.len(), 1);
    }

    #[test]
    fn what_hosts_say_is_kept_up_to_a_bound() {
        let image = message::OldImage {
            manifest: vec![7; 32],
            why: "w".repeat(29),
            ..message::OldImage::default()
        };
        let said = message::OldImages {
            images: vec![image; 3],
            ..message::OldImages::default()
        };
        // each has 71 bytes of digest, and 29 of the reason
        for (most, named) in [(300, 3), (299, 2), (100, 1), (99, 0)] {
            let (shown, bytes) = shown(&id("a"), &said, most);
            assert_eq!(
                (shown.images.len(), shown.more),
                (named, 3 - u32::try_from(named).unwrap())
            );
            assert!(bytes <= most);
        }
    }
}
