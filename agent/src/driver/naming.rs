//! Carries out what [`crate::reconcile`] says images need: links names, looks what stands, and says what is ready.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use proto::{Digest, Reason, message::Names, message::StageState};
use tracing::{info, warn};

use super::{
    Driver, Input, Long,
    image::{Image, millis},
    look::Seen,
    trouble::Trouble,
};
use crate::{
    golden::Goldens,
    metrics::OutcomeLabel,
    platform,
    reconcile::{Have, Job, Sight},
    store::{InstallError, Stage, install_as},
};

/// An installation that found tart's lock taken is tried again after this long. A try costs a few system calls, and presence may come
/// this much late.
const BUSY_PAUSE: Duration = Duration::from_millis(500);

/// Names of one image in one line of the log: thousands may be left of what was wanted once.
const NAMES_SAID: usize = 16;

impl Image {
    /// Whether every chunk is here, and none is believed by the word of an earlier process alone.
    fn is_whole(&self) -> bool {
        self.stage.is_some() && self.open.is_empty() && !self.reading
    }

    /// Whether it is in tart's cache, and nobody doubts it.
    fn is_installed(&self) -> bool {
        let stage = self.stage.as_ref();
        self.is_whole() && stage.is_some_and(|stage| stage.is_installed() && !stage.is_doubted())
    }
}

impl Driver {
    /// Begins what images need next.
    pub(super) fn reconcile(&mut self) {
        while let Some((image, job)) = self.reconciler.next(self.now()) {
            match job {
                Job::Begin(names) => self.begin(image, names),
                Job::Record(names) => self.record(image, names),
                Job::Install(names) => self.install(image, names),
                Job::Abandon => self.abandon(image),
            }
        }
        if self.reconciler.look_due() && !self.checking {
            self.check_presence();
        }
    }

    /// What each reference shall name here, of all images.
    pub(super) fn order_names(&mut self, order: &Names) {
        let names: BTreeMap<String, Digest> = order
            .names
            .iter()
            .filter_map(|name| {
                let image = Digest::try_from(name.manifest_digest.as_slice()).ok()?;
                Some((name.reference.clone(), image))
            })
            .collect();
        let now = self.now();
        let dropped = self.reconciler.name(order.number, order.whole, names, now);
        for image in dropped {
            self.give_up(image);
        }
        self.refresh();
    }

    fn record(&mut self, digest: Digest, names: Vec<String>) {
        let store = self.store.clone();
        self.spawn_blocking(move || {
            let result = store.want(&digest, &names);
            Input::Recorded {
                image: digest,
                result: result.map_err(|error| Trouble::from(&error)),
            }
        });
    }

    pub(super) fn recorded(&mut self, digest: Digest, result: Result<(), Trouble>) {
        let now = self.now();
        self.reconciler.recorded(digest, result.is_ok(), now);
        if let Err(trouble) = result {
            warn!(image = %digest, error = trouble.message, "writing down what names are wanted failed; trying again later");
            if let Some(image) = self.images.get_mut(&digest) {
                image.trouble = Some(trouble);
            }
        }
    }

    fn abandon(&mut self, digest: Digest) {
        self.withdraw(digest);
        self.images.remove(&digest);
        let store = self.store.clone();
        self.spawn_blocking(move || {
            if let Err(error) = store.abandon(digest) {
                warn!(image = %digest, %error, "removing a cancelled stage failed; it is removed at the next start");
            }
            Input::Abandoned(digest)
        });
    }

    /// A content of the image closed, or opened, or all were looked through, or what was here was read.
    pub(super) fn filled(&mut self, digest: Digest) {
        let taken_up = |image: &&mut Image| image.stage.is_some();
        let Some(image) = self.images.get_mut(&digest).filter(taken_up) else {
            return;
        };
        if image.open.is_empty() && image.state == StageState::Staging {
            image.whole.get_or_insert_with(Instant::now);
        }
        let have = match (image.is_whole(), image.is_installed()) {
            (_, true) => Have::Installed,
            (true, false) => Have::Whole,
            (false, _) => Have::Filling,
        };
        if have != Have::Filling && image.state == StageState::Staging {
            image.state = StageState::Installing;
            self.report_due = true;
        }
        self.reconciler.have(digest, have);
        self.refresh();
    }

    fn install(&mut self, digest: Digest, names: Vec<String>) {
        let found = self.images.get_mut(&digest);
        let Some((image, stage)) = found.and_then(|image| {
            let stage = image.stage.clone()?;
            Some((image, stage))
        }) else {
            // what isn't taken up can't be linked: it is begun again
            self.reconciler.installed(digest, false);
            self.reconciler.have(digest, Have::Kept);
            return;
        };
        image.state = StageState::Installing;
        image.whole.get_or_insert_with(Instant::now);
        self.report_due = true;
        self.spawn_long(Long::Install, move || {
            let (placed, result) = install_as(&stage, &names);
            Input::Installed {
                image: digest,
                stage,
                placed,
                result,
            }
        });
    }

    pub(super) fn installed(
        &mut self,
        digest: Digest,
        stage: Arc<Stage>,
        placed: Vec<String>,
        result: Result<(), InstallError>,
    ) {
        let (Some(goldens), false) = (self.goldens.clone(), placed.is_empty()) else {
            self.linked(digest, &stage, result, Ok(()));
            return;
        };
        self.spawn(async move {
            let mut made = Ok(());
            for reference in placed {
                let names = || !stage.is_gone() && stage.is_named(&reference);
                made = made.and(goldens.make(&reference, digest, names).await);
            }
            Input::Golden {
                image: digest,
                stage,
                result: made.map_err(|error| error.to_string()),
                installed: result,
            }
        });
    }

    pub(super) fn golden_made(
        &mut self,
        digest: Digest,
        stage: &Arc<Stage>,
        made: Result<(), String>,
        installed: Result<(), InstallError>,
    ) {
        if let Some(image) = self.images.get_mut(&digest) {
            image.golden |= made.is_ok();
        }
        let made = made.map_err(|message| Trouble {
            reason: Reason::GoldenFailed,
            message,
        });
        self.linked(digest, stage, installed, made);
    }

    /// Names were linked, and their goldens made, or not. What stands is for the next look to say.
    fn linked(
        &mut self,
        digest: Digest,
        stage: &Arc<Stage>,
        installed: Result<(), InstallError>,
        golden: Result<(), Trouble>,
    ) {
        let done = installed.is_ok() && golden.is_ok();
        self.reconciler.installed(digest, done);
        // of a stage of before nothing more is to be said
        let Some(image) = self
            .images
            .get(&digest)
            .filter(|image| image.goes_by(stage))
        else {
            return;
        };
        let all_closed = image.open.is_empty();
        match installed {
            Err(InstallError::Removed) => return self.restage(digest),
            Err(InstallError::Incomplete(content)) => {
                if all_closed {
                    // what is here is looked at anew, and what isn't is fetched
                    warn!(image = %digest, %content, "an image that was whole isn't any more; staging goes on");
                    self.withdraw(digest);
                    self.reconciler.have(digest, Have::Kept);
                }
                return;
            }
            _ => self.filled(digest),
        }
        match installed {
            Ok(()) => {
                if let Err(trouble) = golden {
                    self.failed(digest, trouble);
                }
            }
            Err(error @ InstallError::Busy(_)) => self.wait_for_tart(digest, Trouble::from(&error)),
            Err(error) => self.failed(digest, Trouble::from(&error)),
        }
    }

    /// tart holds its lock, and gives it back some day: that is no failure. The names that the image has stay good.
    fn wait_for_tart(&mut self, digest: Digest, trouble: Trouble) {
        let now = self.now();
        self.reconciler.wait(digest, now, BUSY_PAUSE);
        let Some(image) = self.images.get_mut(&digest) else {
            return;
        };
        if image.trouble.is_none() {
            warn!(image = %digest, reason = trouble.reason.as_str(), error = trouble.message, "installing waits for tart");
        }
        image.trouble = Some(trouble);
        self.report(false);
    }

    /// What looks, orders and jobs make of the states of images. Says so at once where something changed that others rely on.
    pub(super) fn refresh(&mut self) {
        let whole: Vec<Digest> = self
            .images
            .values()
            .filter(|image| image.is_whole() && image.state != StageState::Gone)
            .map(|image| image.digest)
            .collect();
        let mut news = false;
        for digest in whole {
            let ready = self.reconciler.ready(&digest);
            let named = self.reconciler.names(&digest).next().is_some();
            let present = match named {
                true => self.reconciler.is_present(&digest),
                false => !ready.is_empty(),
            };
            let Some(image) = self.images.get_mut(&digest) else {
                continue;
            };
            news |= image.ready != ready;
            image.ready = ready;
            if present && image.state != StageState::Present {
                self.present(digest);
                news = true;
            } else if !present && image.state == StageState::Present {
                image.state = StageState::Installing;
                news = true;
            }
        }
        if news {
            self.report(false);
        }
    }

    fn present(&mut self, digest: Digest) {
        let Some(image) = self.images.get_mut(&digest) else {
            return;
        };
        image.state = StageState::Present;
        image.restaged = false;
        image.clear_trouble();
        let installed_in = image
            .whole
            .take()
            .map(|whole| whole.elapsed())
            .unwrap_or_default();
        self.metrics
            .install_seconds
            .observe(installed_in.as_secs_f64());
        self.metrics
            .stage_seconds
            .get_or_create(&OutcomeLabel { outcome: "present" })
            .observe(image.ordered.elapsed().as_secs_f64());
        info!(
            image = %digest,
            references = ?image.ready.iter().take(NAMES_SAID).collect::<Vec<_>>(),
            elapsed_ms = millis(image.ordered.elapsed()),
            install_ms = millis(installed_in),
            origin_bytes = image.origin_bytes,
            peer_bytes = image.peer_bytes,
            local_bytes = image.local_bytes,
            "image is present"
        );
    }

    // ---- looks ----------------------------------------------------------------------------------------------------------

    /// Looks before anything else happens: what is here is known from the first report on.
    pub(super) fn first_look(&mut self) {
        self.reconciler.look_begins();
        let seen = Seen::look(&self.store, self.goldens.as_deref());
        // what it found goes before what follows from it
        self.hear_store();
        self.see(&seen);
    }

    pub(super) fn check_presence(&mut self) {
        self.checking = true;
        self.last_check = Instant::now();
        self.reconciler.look_begins();
        let (store, goldens): (_, Option<Arc<Goldens>>) =
            (self.store.clone(), self.goldens.clone());
        self.spawn_blocking(move || Input::Presence {
            seen: Seen::look(&store, goldens.as_deref()),
            load_percent: platform::load_percent(),
        });
    }

    pub(super) fn presence_checked(&mut self, seen: &Seen) {
        self.checking = false;
        let confirmed = self.reconciler.confirmed();
        self.see(seen);
        self.report_due = true;
        if self.reconciler.confirmed() != confirmed {
            // somebody waits for that
            self.report(false);
        }
        self.measure();
        self.keep_cache();
        let staging = self
            .images
            .values()
            .any(|image| image.state == StageState::Staging);
        if !staging && !self.scrubbing {
            self.scrub();
        }
    }

    fn see(&mut self, seen: &Seen) {
        let now = self.now();
        for image in self.images.values_mut() {
            if seen.there.contains(&image.digest) {
                image.checked = Some(seen.began);
            }
        }
        let before: BTreeMap<Digest, Vec<String>> = self
            .images
            .values()
            .map(|image| (image.digest, image.ready.clone()))
            .collect();
        self.reconciler.looked(&seen.look, now);
        self.refresh();
        for (digest, before) in before {
            let Some(image) = self.images.get(&digest) else {
                continue;
            };
            let lost: Vec<&String> = before
                .iter()
                .filter(|name| image.ready.binary_search(name).is_err())
                .take(NAMES_SAID)
                .collect();
            let wanted = self.reconciler.is_wanted(&digest);
            if !lost.is_empty() && image.is_installed() && wanted {
                warn!(image = %digest, references = ?lost, "image's tag or its golden was removed or moved; presence is withdrawn");
            }
            let busy = self.reconciler.is_running(&digest);
            if image.is_installed() && image.ready.is_empty() && !wanted && !busy {
                info!(image = %digest, "nothing names the image any more, and nobody wants it");
                self.gone(
                    digest,
                    Reason::Superseded,
                    "no name of it is wanted, and none is left".into(),
                );
            }
        }
    }

    /// Withdraws presence.
    pub(super) fn gone(&mut self, digest: Digest, reason: Reason, message: String) {
        self.withdraw(digest);
        if let Some(image) = self.images.get_mut(&digest) {
            image.state = StageState::Gone;
            image.forget_counts();
            image.ready.clear();
            image.trouble(reason, message);
        }
        self.reconciler.have(digest, Have::Gone);
        self.report(false);
    }

    /// Why an image that is whole isn't present, where no job of it failed.
    pub(super) fn unnamed(&self, image: &Image) -> Option<Trouble> {
        if let Some((name, sight, again_at)) = self.reconciler.lost(&image.digest) {
            let left = again_at.since(self.now()).as_secs();
            let (reason, what) = match sight {
                Sight::Image(other) => (Reason::TagMoved, format!("names {other}")),
                Sight::Other => (Reason::TagMoved, "names another image".to_owned()),
                Sight::Nothing => (Reason::NameLost, "or its golden was removed".to_owned()),
            };
            let message =
                format!("{name} {what}, by tart or somebody else; it is put back in {left} s");
            return Some(Trouble { reason, message });
        }
        if let Some((name, other)) = self.reconciler.waits_for(&image.digest) {
            return Some(Trouble {
                reason: Reason::NameBusy,
                message: format!(
                    "{name} was wanted for {other} and is being linked to that; this one is next"
                ),
            });
        }
        let unnamed = self.reconciler.names(&image.digest).next().is_none();
        (unnamed && image.ready.is_empty()).then(|| Trouble {
            reason: Reason::BadReference,
            message: "no reference is wanted for the image, so tart couldn't find it".to_owned(),
        })
    }
}
