//! What happens to the cluster from outside, and when.

use std::time::Duration;

use proto::Moment;
use rollout::gate::OnDeadline;

use super::{
    Scenario,
    world::{Due, ROLL_AT, World},
};

/// Replicas are patched for so long.
const AUTOSCALED_FOR: Duration = Duration::from_mins(8);

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The pool shall run its old image, or its new one.
    Image {
        pool: usize,
        new: bool,
    },
    Replicas {
        pool: usize,
        percent: i32,
    },
    /// An operator holds the pool, or lets it go on.
    Paused(usize, bool),
    /// The registry has said which image the pool's reference names.
    Resolved(usize),
    Cordon(usize, bool),
    Ready(usize, bool),
    /// The node goes, and its Pods with it; the agent too, or not.
    Lost {
        host: usize,
        silent: bool,
    },
    Back(usize),
    /// The pool's image goes from the disk.
    Prune {
        host: usize,
        image: usize,
    },
    Silent(usize),
    Speaks(usize),
}

impl World {
    pub(super) fn plan_faults(&mut self) {
        let scenario = self.setup.scenario;
        let hosts = self.setup.hosts;
        for pool in 0..self.pools.len() {
            let late = self.between(0, 20_000);
            self.plan(ROLL_AT + late, Fault::Image { pool, new: true });
            for host in 0..hosts {
                // some have it before the images change, some long after
                let takes = match self.below(10) {
                    // the bytes are there
                    _ if scenario == Scenario::Retag => self.between(90_000, 110_000),
                    0 => self.between(150_000, 400_000),
                    _ => self.between(20_000, 200_000),
                };
                self.push(takes, Due::Staged(host, pool * 2 + 1));
            }
            match scenario {
                Scenario::Scale => {
                    let when = self.between(60_000, 240_000);
                    self.plan(ROLL_AT + when, Fault::Replicas { pool, percent: 150 });
                }
                Scenario::Rollback => {
                    let back = self.between(60_000, 240_000);
                    self.plan(ROLL_AT + back, Fault::Image { pool, new: false });
                    if self.below(2) == 0 {
                        let again = self.between(10_000, 200_000);
                        self.plan(ROLL_AT + back + again, Fault::Image { pool, new: true });
                    }
                }
                Scenario::Autoscale => {
                    let first = self.between(0, 5_000);
                    self.push(first, Due::Autoscale(pool));
                    self.calm_at = ROLL_AT + AUTOSCALED_FOR;
                }
                Scenario::Operator => {
                    let mut when = ROLL_AT;
                    for _ in 0..2 {
                        when += self.between(20_000, 200_000);
                        self.plan(when, Fault::Paused(pool, true));
                        when += self.between(5_000, 120_000);
                        self.plan(when, Fault::Paused(pool, false));
                    }
                    let after = self.between(40_000, 300_000);
                    let deadline = ROLL_AT + after;
                    self.calm_at = self.calm_at.max(deadline);
                    self.pools[pool].deadline = Some(deadline);
                    if pool % 2 == 0 {
                        self.pools[pool].on_deadline = OnDeadline::Proceed;
                    }
                }
                Scenario::Guard => {
                    let first = self.between(0, 10_000);
                    self.push(first, Due::Other(pool));
                }
                _ => {}
            }
        }
        for host in 0..hosts {
            match scenario {
                Scenario::Hosts => self.plan_host(host),
                Scenario::Prune if self.below(3) == 0 => {
                    for pool in 0..self.pools.len() {
                        let when = self.between(60_000, 400_000);
                        let image = pool * 2 + 1;
                        self.plan(ROLL_AT + when, Fault::Prune { host, image });
                    }
                }
                Scenario::Silent if self.below(4) == 0 => {
                    let when = self.between(0, 200_000);
                    let lasts = self.between(20_000, 200_000);
                    self.plan(ROLL_AT + when, Fault::Silent(host));
                    if host > 1 {
                        self.plan(ROLL_AT + when + lasts, Fault::Speaks(host));
                    }
                }
                _ => {}
            }
        }
    }

    fn plan_host(&mut self, host: usize) {
        let when = ROLL_AT + self.between(0, 300_000);
        let until = when + self.between(5_000, 150_000);
        match self.below(16) {
            0 | 1 => {
                self.plan(when, Fault::Cordon(host, true));
                self.plan(until, Fault::Cordon(host, false));
            }
            2 | 3 => {
                self.plan(when, Fault::Ready(host, false));
                self.plan(until, Fault::Ready(host, true));
            }
            at @ (4 | 5) => {
                self.plan(
                    when,
                    Fault::Lost {
                        host,
                        silent: at == 4,
                    },
                );
                self.plan(until, Fault::Back(host));
            }
            _ => {}
        }
    }

    fn plan(&mut self, at: Moment, fault: Fault) {
        self.calm_at = self.calm_at.max(at);
        self.push_at(at, Due::Fault(fault));
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Image { pool, new } => {
                self.pools[pool].image = pool * 2 + usize::from(new);
                if self.setup.scenario == Scenario::Operator {
                    self.pools[pool].resolved = false;
                    let takes = self.between(100, 60_000);
                    self.plan(self.now + takes, Fault::Resolved(pool));
                }
                self.show_pool(pool);
            }
            Fault::Replicas { pool, percent } => {
                self.pools[pool].replicas = self.pools[pool].base * percent / 100;
                self.show_pool(pool);
            }
            Fault::Paused(pool, paused) => {
                self.pools[pool].paused = paused;
                self.show_pool(pool);
            }
            Fault::Resolved(pool) => {
                self.pools[pool].resolved = true;
                self.show_pool(pool);
            }
            Fault::Cordon(host, cordoned) => {
                self.hosts[host].schedulable = !cordoned;
                self.show_node(host);
            }
            Fault::Ready(host, ready) => {
                self.hosts[host].ready = ready;
                self.show_node(host);
            }
            Fault::Lost { host, silent } => {
                (self.hosts[host].exists, self.hosts[host].ready) = (false, false);
                if silent {
                    self.hosts[host].speaks_from = None;
                }
                self.host_came_or_went(host);
                let there: Vec<u32> = self
                    .pods
                    .iter()
                    .filter(|(_, pod)| pod.host == Some(host))
                    .map(|(uid, _)| *uid)
                    .collect();
                for uid in there {
                    self.delete(uid);
                }
            }
            Fault::Back(host) => {
                (self.hosts[host].exists, self.hosts[host].ready) = (true, true);
                self.hosts[host].speaks_from.get_or_insert(self.now);
                self.host_came_or_went(host);
            }
            Fault::Prune { host, image } => {
                if self.hosts[host].holds.remove(&image) {
                    let takes = self.between(30_000, 120_000);
                    self.calm_at = self.calm_at.max(self.now + takes);
                    self.push(takes, Due::Staged(host, image));
                }
            }
            Fault::Silent(host) => self.hosts[host].speaks_from = None,
            Fault::Speaks(host) => self.hosts[host].speaks_from = Some(self.now),
        }
    }

    fn host_came_or_went(&mut self, host: usize) {
        self.show_node(host);
        for pool in 0..self.pools.len() {
            self.show_pool(pool);
        }
    }

    pub(super) fn autoscale(&mut self, pool: usize) {
        let base = self.pools[pool].base;
        if self.now < ROLL_AT + AUTOSCALED_FOR {
            let by = i32::try_from(self.below(5)).unwrap_or(0) - 2;
            self.pools[pool].replicas = (base + by).max(0);
            self.push(Duration::from_secs(5), Due::Autoscale(pool));
        } else {
            self.pools[pool].replicas = base;
        }
        self.show_pool(pool);
    }
}
