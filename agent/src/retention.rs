//! By whose rule old images go: the host's own, or the fleet's. And which images the cluster's Pods refer to.
//!
//! A host's own settings win over the fleet's as a whole. The fleet's rule counts only while a session with the
//! coordinator lasts in which the coordinator said the rule, and once the rule has stood unchanged for a while. So a
//! coordinator that lost its state, or was set wrongly for a moment, removes nothing. What Pods refer to counts until
//! it is told anew, also after a restart (`store::in_use` keeps it). Which images go is decided by `store::retire`, by
//! what lies on this host.

use std::{collections::BTreeSet, time::Duration};

use proto::{
    Digest, Moment, Reference,
    message::{self, RuleSource},
    retention::MAX_IN_USE,
};
use tracing::{info, warn};

pub(crate) use proto::retention::{Rule, RuleError};

/// The first line of a list in a file that has all references.
const WHOLE: &str = "all";
/// The first line of a list in a file where there are more.
const CUT: &str = "more";

/// A host's own settings about old images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Own {
    /// The host's own rule. It wins over the fleet's.
    pub rule: Option<Rule>,
    /// Whether the fleet's rule may count here.
    pub takes_fleets: bool,
    /// How long the fleet's rule has to stand before it counts.
    pub grace: Duration,
}

/// What decides which old images go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) rule: Rule,
    pub(crate) in_use: InUse,
}

impl Terms {
    /// The strictest rule that a host may have: one image of each repository stays, and none for its age.
    pub(crate) fn strictest(in_use: InUse) -> Self {
        Self {
            rule: Rule::STRICTEST,
            in_use,
        }
    }

    /// These numbers, with no Pod anywhere.
    #[cfg(test)]
    pub(crate) fn of(images: Option<u32>, days: Option<u32>) -> Self {
        Self {
            rule: Rule::new(images, days).unwrap().unwrap(),
            in_use: InUse::default(),
        }
    }
}

/// The references that Pods on this host, and pools whose Pods may come here, have in their specs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct InUse {
    /// Their places (`Reference::place`).
    names: BTreeSet<String>,
    /// There are more.
    cut: bool,
}

impl InUse {
    /// These references. `more`: there are others, too. What isn't a reference names nothing here, and is left out.
    pub(crate) fn new(references: impl IntoIterator<Item = String>, more: bool) -> Self {
        let mut references = references.into_iter();
        let names = references.by_ref().take(MAX_IN_USE);
        let names = names.filter_map(|name| Some(name.parse::<Reference>().ok()?.place()));
        Self {
            names: names.collect(),
            cut: more || references.next().is_some(),
        }
    }

    /// Nobody knows which.
    pub(crate) const fn unknown() -> Self {
        Self {
            names: BTreeSet::new(),
            cut: true,
        }
    }

    /// Reads what [`to_text`](Self::to_text) wrote.
    pub(crate) fn parse(text: &str) -> Self {
        let mut lines = text.lines().map(str::to_owned);
        let is_whole = lines.next().is_some_and(|line| line == WHOLE);
        Self::new(lines, !is_whole)
    }

    /// A line that says whether there are more, and a line for each place.
    pub(crate) fn to_text(&self) -> String {
        let first = if self.cut { CUT } else { WHOLE };
        let names = self.names.iter().map(String::as_str);
        let lines = std::iter::once(first).chain(names);
        lines.flat_map(|line| [line, "\n"]).collect()
    }

    /// The name by which something refers to an image that has these names and this digest.
    pub(crate) fn find(&self, names: &BTreeSet<String>, image: &Digest) -> Option<&str> {
        let by_digest = format!("@{image}");
        let mut used = self.names.iter();
        let found = used.find(|used| names.contains(*used) || used.ends_with(&by_digest));
        found.map(String::as_str)
    }

    /// Whether others are in use beside those that are known.
    pub(crate) const fn is_cut(&self) -> bool {
        self.cut
    }
}

/// What counts at this moment, for work that goes on while orders come.
#[derive(Clone, Debug, Default)]
pub(crate) struct InForce {
    /// What decides which old images go. `None`: all stay.
    pub(crate) terms: Option<Terms>,
    /// What Pods and pools refer to, as far as it was told.
    pub(crate) in_use: InUse,
}

/// By whose rule old images go here now. See the [module](self).
#[derive(Debug)]
pub(crate) struct Retention {
    own: Own,
    /// The fleet's rule, and since when it has been told without a change.
    fleets: Option<(Rule, Moment)>,
    /// The coordinator's session lasts in which the rule was told last.
    is_told: bool,
    in_use: InUse,
    /// When this process began, as long as it wasn't told what Pods refer to: it may be told yet.
    untold_since: Option<Moment>,
    asked: Asked,
}

/// Questions of the coordinator. One is answered at a time, and of those that wait the last one counts.
#[derive(Debug)]
enum Asked {
    Nothing,
    Looking {
        next: Option<message::OldImagesAsked>,
    },
}

/// A question which old images would go.
#[derive(Debug, PartialEq)]
pub(crate) struct Question {
    /// By these terms; `None`: all stay.
    pub(crate) terms: Option<Terms>,
    /// The answer, but for what lies on the disk.
    pub(crate) answer: message::OldImages,
}

/// A rule that is in force, or the next one that may be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Standing {
    rule: Option<Rule>,
    source: RuleSource,
    /// Why the rule doesn't count yet. Empty where it does.
    note: String,
}

impl Retention {
    /// `now` is when the process began. `in_use` is what an earlier process was told last.
    pub(crate) fn new(own: Own, now: Moment, in_use: InUse) -> Self {
        Self {
            own,
            fleets: None,
            is_told: false,
            in_use,
            untold_since: Some(now),
            asked: Asked::Nothing,
        }
    }

    /// The coordinator said its rule, and what Pods refer to. Returns what counts from now on.
    pub(crate) fn ordered(&mut self, now: Moment, order: message::Retention) -> InForce {
        self.hear(now, order);
        self.in_force(now)
    }

    fn hear(&mut self, now: Moment, order: message::Retention) {
        if let Some(in_use) = order.in_use {
            self.in_use = InUse::new(in_use.references, in_use.more);
            self.untold_since = None;
        }
        let rule = order.rule.map(Rule::parse).transpose();
        let rule = rule.unwrap_or_else(|error| {
            warn!(%error, "the fleet's rule about old images isn't followed");
            None
        });
        let rule = rule.flatten();
        self.is_told = rule.is_some();
        let before = self.fleets.map(|(before, _)| before);
        if before == rule {
            return;
        }
        self.fleets = rule.map(|rule| (rule, now));
        match rule {
            Some(rule) if self.may_take_fleets() => {
                info!(%rule, grace_seconds = self.own.grace.as_secs(), "the fleet has a rule about old images");
            }
            _ => {}
        }
    }

    /// The session is over: the fleet's rule doesn't count until it is said again. Returns what counts from now on.
    pub(crate) fn session_ended(&mut self, now: Moment) -> InForce {
        self.is_told = false;
        self.in_force(now)
    }

    /// What decides which old images go now. `None`: all stay.
    fn terms(&self, now: Moment) -> Option<Terms> {
        let standing = self.standing(now);
        let rule = standing.rule.filter(|_| standing.note.is_empty())?;
        let in_use = self.in_use.clone();
        Some(Terms { rule, in_use })
    }

    /// What counts now.
    pub(crate) fn in_force(&self, now: Moment) -> InForce {
        InForce {
            terms: self.terms(now),
            in_use: self.in_use.clone(),
        }
    }

    /// The coordinator asks which old images would go. Returns the question if it is to be answered now.
    pub(crate) fn ask(&mut self, now: Moment, asked: message::OldImagesAsked) -> Option<Question> {
        if let Asked::Looking { next } = &mut self.asked {
            *next = Some(asked);
            return None;
        }
        self.asked = Asked::Looking { next: None };
        Some(self.question(now, &asked))
    }

    /// A question is answered. Returns the next one.
    pub(crate) fn answered(&mut self, now: Moment) -> Option<Question> {
        match std::mem::replace(&mut self.asked, Asked::Nothing) {
            Asked::Looking { next: Some(next) } => self.ask(now, next),
            Asked::Looking { next: None } | Asked::Nothing => None,
        }
    }

    fn question(&self, now: Moment, asked: &message::OldImagesAsked) -> Question {
        let standing = match asked.rule.map(Rule::parse) {
            None => self.standing(now),
            Some(rule) => Standing {
                rule: rule.as_ref().ok().copied().flatten(),
                source: RuleSource::Asked,
                note: rule
                    .err()
                    .map_or_else(String::new, |error| error.to_string()),
            },
        };
        let in_use = self.in_use.clone();
        Question {
            terms: standing.rule.map(|rule| Terms { rule, in_use }),
            answer: message::OldImages {
                number: asked.number,
                rule: standing.rule.map(Rule::to_message),
                source: standing.source.into(),
                note: standing.note,
                ..message::OldImages::default()
            },
        }
    }

    /// The rule that is in force, or is about to be.
    fn standing(&self, now: Moment) -> Standing {
        let nobodys = |note: &str| Standing {
            rule: None,
            source: RuleSource::Unspecified,
            note: note.to_owned(),
        };
        if let Some(rule) = self.own.rule {
            let left = self.untold_since.map(|since| self.left(now, since));
            return Standing {
                rule: Some(rule),
                source: RuleSource::Host,
                note: left.map_or_else(String::new, counts_in),
            };
        }
        let Some((rule, since)) = self.fleets.filter(|_| self.is_told) else {
            return nobodys("neither this host's settings nor the fleet's have a rule");
        };
        if !self.may_take_fleets() {
            return nobodys("this host's settings say that the fleet's rule doesn't count here");
        }
        Standing {
            rule: Some(rule),
            source: RuleSource::Fleet,
            note: counts_in(self.left(now, since)),
        }
    }

    /// What is left of the time for which a rule has to stand.
    fn left(&self, now: Moment, since: Moment) -> Duration {
        self.own.grace.saturating_sub(now.since(since))
    }

    fn may_take_fleets(&self) -> bool {
        self.own.rule.is_none() && self.own.takes_fleets
    }
}

/// Why a rule doesn't count yet; empty where it does.
fn counts_in(left: Duration) -> String {
    match left.is_zero() {
        true => String::new(),
        false => format!("the rule counts in {} s", left.as_secs().max(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_mins(10);

    fn rule(images: u32) -> Rule {
        Rule::new(Some(images), None).unwrap().unwrap()
    }

    fn retention(own: Option<Rule>, takes_fleets: bool) -> Retention {
        let own = Own {
            rule: own,
            takes_fleets,
            grace: GRACE,
        };
        Retention::new(own, Moment::START, InUse::default())
    }

    fn told(images: u32) -> message::Retention {
        message::Retention {
            rule: Some(rule(images).to_message()),
            in_use: None,
        }
    }

    fn in_force(retention: &Retention, now: Moment) -> Option<Rule> {
        retention.terms(now).map(|terms| terms.rule)
    }

    #[test]
    fn the_fleets_rule_counts_once_it_has_stood_and_while_it_is_said() {
        let mut retention = retention(None, true);
        let start = Moment::START;
        assert_eq!(in_force(&retention, start), None);
        retention.ordered(start, told(2));
        let (early, late) = (start + (GRACE - Duration::from_millis(1)), start + GRACE);
        assert_eq!(in_force(&retention, early), None);
        assert!(retention.standing(early).note.contains("counts in 1 s"));
        assert_eq!(in_force(&retention, late), Some(rule(2)));
        // the same rule in another session has stood all the time, but doesn't count where nobody says it
        retention.session_ended(late);
        assert_eq!(in_force(&retention, late), None);
        retention.ordered(late, told(2));
        assert_eq!(in_force(&retention, late), Some(rule(2)));
        // another rule has to stand anew, and so has one that was taken back for a moment
        retention.ordered(late, told(3));
        assert_eq!(in_force(&retention, late), None);
        retention.ordered(late, message::Retention::default());
        retention.ordered(late, told(3));
        let later = late + GRACE;
        assert_eq!(in_force(&retention, later), Some(rule(3)));
        retention.ordered(later, message::Retention::default());
        assert_eq!(in_force(&retention, later), None);
    }

    #[test]
    fn a_hosts_own_rule_wins_and_a_host_may_stay_out() {
        let start = Moment::START;
        for (own, takes, expected) in [
            (Some(rule(5)), true, Some(rule(5))),
            (Some(rule(5)), false, Some(rule(5))),
            (None, true, Some(rule(1))),
            (None, false, None),
        ] {
            let mut retention = retention(own, takes);
            assert_eq!(in_force(&retention, start + GRACE), own);
            retention.ordered(start, told(1));
            assert_eq!(in_force(&retention, start + GRACE), expected);
            retention.session_ended(start);
            assert_eq!(in_force(&retention, start + GRACE), own);
        }
    }

    #[test]
    fn after_a_start_nothing_goes_before_it_may_be_known_what_pods_need() {
        let mut retention = retention(Some(rule(5)), true);
        let start = Moment::START;
        let (early, late) = (start + (GRACE - Duration::from_millis(1)), start + GRACE);
        assert_eq!(in_force(&retention, early), None);
        assert!(retention.standing(early).note.contains("counts in 1 s"));
        // in a rack without a cluster nobody says it
        assert_eq!(in_force(&retention, late), Some(rule(5)));
        let known = message::Retention {
            rule: None,
            in_use: Some(message::InUse::default()),
        };
        retention.ordered(start, known);
        assert_eq!(in_force(&retention, start), Some(rule(5)));
    }

    #[test]
    fn what_an_earlier_process_was_told_counts_until_it_is_told_anew() {
        let own = Own {
            rule: Some(rule(1)),
            takes_fleets: true,
            grace: GRACE,
        };
        let (start, late) = (Moment::START, Moment::START + GRACE);
        let told = InUse::new(["ghcr.io/org/a:1".to_owned()], false);
        let mut retention = Retention::new(own, start, told.clone());
        // the coordinator is away for longer than the grace
        assert_eq!(retention.in_force(start).in_use, told);
        assert_eq!(retention.terms(late).unwrap().in_use, told);
        retention.ordered(late, message::Retention::default());
        assert_eq!(retention.terms(late).unwrap().in_use, told);
        let none = message::Retention {
            rule: None,
            in_use: Some(message::InUse::default()),
        };
        retention.ordered(late, none);
        assert_eq!(retention.terms(late).unwrap().in_use, InUse::default());
    }

    #[test]
    fn a_list_is_read_as_it_was_written() {
        let names = ["ghcr.io/Org/a:V1", "r.io:5000/b@sha256:", "r.io/c"];
        let digest = Digest::of(b"c").to_string();
        let names = names.map(|name| name.replace("sha256:", &digest));
        for in_use in [
            InUse::default(),
            InUse::unknown(),
            InUse::new(names.clone(), false),
            InUse::new(names, true),
            InUse::new((0..=MAX_IN_USE).map(|n| format!("r.io/a:{n}")), false),
        ] {
            assert_eq!(InUse::parse(&in_use.to_text()), in_use);
        }
        assert!(InUse::parse("").is_cut() && InUse::parse("r.io/a:1\n").is_cut());
    }

    #[test]
    fn questions_are_answered_one_by_one_and_say_whose_rule_they_go_by() {
        let mut retention = retention(None, true);
        let start = Moment::START;
        let asked = |number, rule: Option<Rule>| message::OldImagesAsked {
            number,
            rule: rule.map(Rule::to_message),
        };
        let nobodys = retention.ask(start, asked(1, None)).unwrap();
        assert!(nobodys.terms.is_none() && nobodys.answer.number == 1);
        assert!(nobodys.answer.note.starts_with("neither this host's"));
        retention.ordered(start, told(2));
        assert_eq!(retention.ask(start, asked(2, None)), None);
        assert_eq!(retention.ask(start, asked(3, None)), None);
        // a rule that doesn't count yet is asked about before it does
        let fleets = retention.answered(start).unwrap();
        assert_eq!(fleets.terms.unwrap().rule, rule(2));
        assert_eq!(fleets.answer.number, 3);
        assert_eq!(fleets.answer.source(), RuleSource::Fleet);
        assert_eq!(fleets.answer.note, "the rule counts in 600 s");
        assert_eq!(retention.answered(start), None);
        let typed = retention.ask(start, asked(4, Some(rule(9)))).unwrap();
        assert_eq!(typed.terms.unwrap().rule, rule(9));
        assert_eq!(typed.answer.source(), RuleSource::Asked);
        retention.answered(start);
        let wrong = message::OldImagesAsked {
            number: 5,
            rule: Some(message::RetentionRule {
                keep_images: u32::MAX,
                keep_days: 0,
            }),
        };
        let wrong = retention.ask(start, wrong).unwrap();
        assert!(wrong.terms.is_none() && wrong.answer.note.starts_with("keep_images is"));
    }

    #[test]
    fn a_rule_out_of_bounds_is_none() {
        let mut retention = retention(None, true);
        let start = Moment::START;
        retention.ordered(start, told(2));
        let wrong = message::RetentionRule {
            keep_images: 0,
            keep_days: u32::MAX,
        };
        retention.ordered(
            start,
            message::Retention {
                rule: Some(wrong),
                in_use: None,
            },
        );
        assert_eq!(in_force(&retention, start + GRACE), None);
        retention.ordered(start, told(2));
        retention.ordered(
            start,
            message::Retention {
                rule: Some(message::RetentionRule::default()),
                in_use: None,
            },
        );
        assert_eq!(in_force(&retention, start + GRACE), None);
    }

    #[test]
    fn what_pods_refer_to_is_remembered_until_it_is_said_anew() {
        let mut retention = retention(Some(rule(1)), true);
        let start = Moment::START;
        let in_use = |references: &[&str], more| message::Retention {
            rule: None,
            in_use: Some(message::InUse {
                references: references.iter().map(|name| (*name).to_owned()).collect(),
                more,
            }),
        };
        let known = |retention: &Retention| retention.terms(start).unwrap().in_use;
        retention.ordered(start, in_use(&["ghcr.io/org/a:1", "no reference"], false));
        let expected = InUse::new(["ghcr.io/org/a:1".to_owned()], false);
        assert_eq!(known(&retention), expected);
        retention.session_ended(start);
        retention.ordered(start, message::Retention::default());
        assert_eq!(known(&retention), expected, "nothing was said of it");
        retention.ordered(start, in_use(&[], false));
        assert_eq!(known(&retention), InUse::default());
        let many: Vec<String> = (0..=MAX_IN_USE).map(|n| format!("r.io/a:{n}")).collect();
        assert!(InUse::new(many.clone(), false).is_cut());
        assert!(!InUse::new(many[1..].to_vec(), false).is_cut());
        assert!(InUse::new([], true).is_cut());
    }
}
