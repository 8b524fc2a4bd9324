//! What happens to the cluster from outside, and when.

use std::time::Duration;

use proto::Moment;
use rollout::gate::{OnDeadline, Phase, Template};

use super::{
    Scenario,
    world::{Due, IMAGES, Owner, ROLL_AT, World},
};

/// Replicas are patched for so long.
const AUTOSCALED_FOR: Duration = Duration::from_mins(8);

#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The pool shall run this one of its images.
    Image {
        pool: usize,
        image: usize,
    },
    /// Its owner makes Pods of this one.
    Template {
        pool: usize,
        image: usize,
    },
    /// One of its idle Pods ends by itself.
    End(usize),
    /// Its owner makes Pods, or none.
    Makes(usize, bool),
    /// An operator who was told that its owner lags, and has mended that, shows it to a gate that can't read it: by a Pod
    /// that is deleted, or by a pause that ends.
    Nudge(usize),
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
            let rolls = ROLL_AT + late;
            match scenario {
                Scenario::TemplateLags
                | Scenario::TemplateLeads
                | Scenario::TwoSpellings
                | Scenario::NoOwner => self.plan_owner(pool, rolls),
                _ => self.plan(rolls, Fault::Image { pool, image: 1 }),
            }
            for host in 0..hosts {
                // some have it before the images change, some long after
                let takes = match self.below(10) {
                    // the bytes are there
                    _ if scenario == Scenario::Retag => self.between(90_000, 110_000),
                    0 => self.between(150_000, 400_000),
                    _ => self.between(20_000, 200_000),
                };
                self.push(takes, Due::Staged(host, pool * IMAGES + 1));
                if scenario == Scenario::TwoSpellings {
                    self.push(takes, Due::Staged(host, pool * IMAGES + 2));
                }
            }
            match scenario {
                Scenario::Scale => {
                    let when = self.between(60_000, 240_000);
                    self.plan(ROLL_AT + when, Fault::Replicas { pool, percent: 150 });
                }
                Scenario::Rollback => {
                    let back = self.between(60_000, 240_000);
                    self.plan(ROLL_AT + back, Fault::Image { pool, image: 0 });
                    if self.below(2) == 0 {
                        let again = self.between(10_000, 200_000);
                        self.plan(ROLL_AT + back + again, Fault::Image { pool, image: 1 });
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
                        let image = pool * IMAGES + 1;
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

    /// A roll whose pool and owner don't change together.
    fn plan_owner(&mut self, pool: usize, rolls: Moment) {
        let apart = match self.below(4) {
            0 => self.between(50, 2_000),
            _ => self.between(2_000, 240_000),
        };
        let image = |image| Fault::Image { pool, image };
        let template = |image| Fault::Template { pool, image };
        let mut mended = rolls + apart;
        match self.setup.scenario {
            Scenario::TemplateLags => {
                self.plan(rolls, image(1));
                self.plan(mended, template(1));
            }
            Scenario::TemplateLeads => {
                self.plan(rolls, template(1));
                for _ in 0..2 {
                    let within = u64::try_from(apart.as_millis()).unwrap_or(0);
                    let when = self.between(0, within.max(1));
                    self.plan(rolls + when, Fault::End(pool));
                }
                self.plan(mended, image(1));
            }
            Scenario::TwoSpellings => {
                // the owner has the tag, the pool the digest
                self.plan(rolls, template(1));
                self.plan(rolls, image(2));
                mended += Duration::from_mins(2);
                match self.below(2) {
                    0 => self.plan(mended, template(2)),
                    _ => self.plan(mended, image(1)),
                }
            }
            _ => {
                let before = self.between(0, 30_000);
                self.plan(rolls + before, Fault::Makes(pool, false));
                self.plan(rolls, image(1));
                if pool % 2 == 1 {
                    let after = self.between(200_000, 600_000);
                    self.plan(rolls + after, Fault::Makes(pool, true));
                }
                return;
            }
        }
        if !self.pools[pool].is_read() {
            // nobody sees that it is mended but by its Pods: after a while somebody shows it
            let after = self.between(20_000, 120_000);
            self.plan(mended + after, Fault::Nudge(pool));
        }
    }

    fn nudge(&mut self, pool: usize) {
        let id = self.pools[pool].id.clone();
        let status = self.office.gate.status(&id);
        if status.is_none_or(|status| status.lag.is_none()) {
            return;
        }
        if self.below(2) == 0 {
            self.pools[pool].ended += 1;
            self.end_one(pool);
        } else {
            self.plan(self.now, Fault::Paused(pool, true));
            let lasts = self.between(1_000, 20_000);
            self.plan(self.now + lasts, Fault::Paused(pool, false));
        }
    }

    /// One of a pool's Pods that are idle, run and weren't let go ends.
    fn end_one(&mut self, pool: usize) {
        let idle: Vec<u32> = self
            .pods
            .iter()
            .filter(|(_, pod)| {
                pod.pool == pool
                    && pod.alive()
                    && pod.phase == Phase::Running
                    && !(pod.busy || pod.labelled || pod.exiting)
            })
            .map(|(uid, _)| *uid)
            .collect();
        let at = usize::try_from(self.below(idle.len() as u64)).unwrap_or(0);
        if let Some(uid) = idle.get(at) {
            self.end(*uid);
        }
    }

    fn plan(&mut self, at: Moment, fault: Fault) {
        self.calm_at = self.calm_at.max(at);
        self.push_at(at, Due::Fault(fault));
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Image { pool, image } => {
                self.pools[pool].image = pool * IMAGES + image;
                self.pools[pool].agrees_since = None;
                self.pools[pool].compare(self.now);
                if let Owner::Template { read, .. } = &mut self.pools[pool].owner
                    && *read != Template::Unknown
                {
                    // it is read anew before anything is decided
                    *read = Template::Unread;
                    let takes = self.between(5, 300);
                    self.push(takes, Due::Read(pool));
                }
                if self.setup.scenario == Scenario::Operator {
                    self.pools[pool].resolved = false;
                    let takes = self.between(100, 60_000);
                    self.plan(self.now + takes, Fault::Resolved(pool));
                }
                self.show_pool(pool);
            }
            Fault::Template { pool, image: to } => {
                if let Owner::Template { image, .. } = &mut self.pools[pool].owner {
                    *image = pool * IMAGES + to;
                }
                self.pools[pool].compare(self.now);
            }
            Fault::End(pool) => {
                self.pools[pool].ended += 1;
                self.end_one(pool);
            }
            Fault::Makes(pool, makes) => {
                self.pools[pool].makes = makes;
                self.pools[pool].makes_since = self.now;
            }
            Fault::Nudge(pool) => self.nudge(pool),
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
