//! The scenarios of rolls, and the fleets that they happen to.

/// What happens during the roll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Only the usual: jobs, late watches, and writes that conflict or lose their answers.
    Roll,
    /// Pools grow by half in the middle of the roll.
    Scale,
    /// Pools go back to the old image in the middle of the roll, and half of them go forward again later.
    Rollback,
    /// The new reference names the same digest.
    Retag,
    /// Hosts are lost, cordoned, NotReady, and taken out and back in.
    Hosts,
    /// A third of the hosts lose the image for a while after it was staged.
    Prune,
    /// A quarter of the agents fall silent, two of them for good.
    Silent,
    /// The coordinator restarts in every second step that writes.
    GateRestart,
    /// Replicas are patched every 5 s.
    Autoscale,
    /// Every cap is one.
    CapOne,
    /// Another controller labels every Pod that it may, and asks the gate before.
    Guard,
    /// Pools are paused for a while, their images are resolved late, and deadlines pass. After the deadline, half of
    /// the pools let Pods go.
    Operator,
    /// What a pool's owner makes changes seconds to minutes after the pool's image.
    TemplateLags,
    /// The owner's image changes before the pool's image, and Pods end by themselves in between.
    TemplateLeads,
    /// Pool and owner write one digest in two ways, until somebody corrects one of them.
    TwoSpellings,
    /// Owners stop making Pods, and half of them resume after some minutes.
    NoOwner,
    /// Other controllers delete Pods outside of the cap. They reserve hosts for pools, empty cordoned hosts, and drain
    /// Pods for an operator, who thinks better of it half of the time. Finalizers hold deleted Pods for minutes.
    Beside,
    /// The pools share a cap on the Pods of the fleet that are started at one time.
    FleetCap,
}

impl Scenario {
    /// Every scenario.
    pub const ALL: [Self; 18] = [
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
        Self::Beside,
        Self::FleetCap,
    ];

    /// Whether only the gate takes Pods in this scenario, if there are no jobs.
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
            Self::Beside => "beside",
            Self::FleetCap => "fleet-cap",
        }
    }

    /// The scenario in one line.
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
            Self::Beside => "hosts are reserved or emptied, Pods drained, finalizers hold Pods",
            Self::FleetCap => "pools share a cap on the Pods that are started at one time",
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

/// The setting of a roll.
#[derive(Clone, Debug)]
pub struct Setup {
    /// What happens.
    pub scenario: Scenario,
    /// Hosts, each with room for two Pods.
    pub hosts: usize,
    /// The seed.
    pub seed: u64,
    /// The gate's settings.
    pub gate: rollout::gate::Config,
    /// A defect for testing the checks: as soon as a Pod leaves, the gate is told of a warm successor that doesn't
    /// exist.
    pub phantoms: bool,
}

impl Setup {
    /// A setting with the gate's default settings and no defect.
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
