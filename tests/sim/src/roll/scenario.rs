//! What happens in a roll, and to which fleet.

/// What happens during the roll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Nothing but the usual: jobs, late watches, writes that conflict or lose their answers.
    Roll,
    /// Pools grow by half in mid-roll.
    Scale,
    /// Pools go back to the old image in mid-roll, half of them forward again later.
    Rollback,
    /// The new reference names the same digest.
    Retag,
    /// Hosts are lost, cordoned, NotReady, and taken out and back in.
    Hosts,
    /// A third of the hosts lose the image after it was staged, for a while.
    Prune,
    /// A quarter of the agents fall silent, two of them for good.
    Silent,
    /// The coordinator is restarted in every second step that writes.
    GateRestart,
    /// Replicas are patched every 5 s.
    Autoscale,
    /// Every cap is one.
    CapOne,
    /// Another controller labels whatever it may, and asks.
    Guard,
    /// Pools are paused for a while, their images are resolved late, and deadlines pass: half of them let Pods go.
    Operator,
    /// What a pool's owner makes changes seconds to minutes after the pool's image.
    TemplateLags,
    /// And before it; Pods end by themselves in between.
    TemplateLeads,
    /// Pool and owner spell one digest in two ways, until somebody mends one of them.
    TwoSpellings,
    /// Owners make no Pods any more; half of them are back after minutes.
    NoOwner,
}

impl Scenario {
    /// Every scenario.
    pub const ALL: [Self; 16] = [
        Self::Roll,
        Self::Scale,
        Self::Rollback,
        Self::Retag,
        Self::Hosts,
        Self::Prune,
        Self::Silent,
        Self::GateRestart,
        Self::Autoscale,
        Self::CapOne,
        Self::Guard,
        Self::Operator,
        Self::TemplateLags,
        Self::TemplateLeads,
        Self::TwoSpellings,
        Self::NoOwner,
    ];

    /// Whether nobody but the gate takes a Pod, where there are no jobs.
    pub(crate) const fn is_quiet(self) -> bool {
        matches!(
            self,
            Self::Roll
                | Self::CapOne
                | Self::Retag
                | Self::TemplateLags
                | Self::TemplateLeads
                | Self::TwoSpellings
                | Self::NoOwner
        )
    }

    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Roll => "roll",
            Self::Scale => "scale",
            Self::Rollback => "rollback",
            Self::Retag => "retag",
            Self::Hosts => "hosts",
            Self::Prune => "prune",
            Self::Silent => "silent",
            Self::GateRestart => "gate-restart",
            Self::Autoscale => "autoscale",
            Self::CapOne => "cap-one",
            Self::Guard => "guard",
            Self::Operator => "operator",
            Self::TemplateLags => "template-lags",
            Self::TemplateLeads => "template-leads",
            Self::TwoSpellings => "two-spellings",
            Self::NoOwner => "no-owner",
        }
    }

    /// What happens in it.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::Roll => "six pools that share the fleet roll to new images",
            Self::Scale => "pools grow by half in mid-roll",
            Self::Rollback => "pools roll back in mid-roll, half of them forward again",
            Self::Retag => "the new reference names the same digest",
            Self::Hosts => "hosts are lost, cordoned, NotReady, taken out and back in",
            Self::Prune => "a third of the hosts lose the image after staging",
            Self::Silent => "a quarter of the agents fall silent, two for good",
            Self::GateRestart => "the coordinator restarts in every second step that writes",
            Self::Autoscale => "replicas are patched every 5 s",
            Self::CapOne => "every cap is one",
            Self::Guard => "another controller labels greedily, and asks the gate",
            Self::Operator => "pools are paused, images are resolved late, deadlines pass",
            Self::TemplateLags => "what owners make changes long after the pools' images",
            Self::TemplateLeads => "and long before them, with Pods that end in between",
            Self::TwoSpellings => "pools and owners spell one digest in two ways, for a while",
            Self::NoOwner => "owners make no Pods any more, half of them for good",
        }
    }

    /// The scenario of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|scenario| scenario.name() == name)
    }
}

/// A roll's circumstances.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What happens.
    pub scenario: Scenario,
    /// Hosts, each with room for two Pods.
    pub hosts: usize,
    /// The seed.
    pub seed: u64,
    /// The gate's numbers.
    pub gate: rollout::gate::Config,
    /// The gate is told of a warm successor as soon as a Pod left, which isn't there: to see that the checks see it.
    pub phantoms: bool,
}

impl Setup {
    /// The gate's own numbers.
    #[must_use]
    pub fn new(scenario: Scenario, hosts: usize, seed: u64) -> Self {
        Self {
            scenario,
            hosts,
            seed,
            gate: rollout::gate::Config::default(),
            phantoms: false,
        }
    }
}
