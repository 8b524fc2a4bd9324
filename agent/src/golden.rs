//! Goldens: local tart VMs that are cloned from a staged image, under the name by which the fleet's node agent finds
//! them (tuist/tuist of autumn 2026, infra/tart-kubelet/internal/podagent/reconciler.go: goldenVMName, ensureGolden).
//! That agent deletes local VMs that are neither goldens nor a Pod's every five minutes, and cached images to whose
//! repository no Pod refers; goldens stay for a day, or while there is room (podagent/garbage.go: runOnce, keepGolden,
//! reclaimGoldensUnderDiskPressure). It may delete a golden that hasn't its name yet; then the golden is made again.
//!
//! The reference alone decides a golden's name. So a tag that moved leaves a golden of the old image under the name.
//! The file `TART_HOME/.parbake/goldens/<name>`, the golden's mark, holds the digest of the image that a golden of ours
//! was made from, on the next line the reference, and on the third one which directory the VM is: its inode, and when
//! it was made. For somebody else may make a VM of that name, also when ours was removed. Such a VM stays, and the
//! golden isn't made. Marks of earlier versions lack the third line, or the second one, too.
//!
//! A golden is cloned under another name, [`unnamed`]. Then its mark is written, and it takes its own name, if nobody
//! else has that by now, both under tart's lock of its home. So a VM under a golden's name is ours if and only if the
//! mark fits. A crash leaves:
//!
//! | when | under the golden's name | under the other name |
//! |---|---|---|
//! | the golden of another image is removed | nothing, and that golden's mark | nothing |
//! | cloned, or the mark is written | nothing, and a mark that fits nothing there | a VM, which the next try replaces |
//! | renamed | the golden, with its mark | nothing |

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use proto::{Digest, image::golden_name};
use tracing::{info, warn};

use crate::{
    metrics::{Metrics, OperationLabel},
    platform::{self, LockError},
    tart::{Reference, Tart, TartError, cache},
};

/// Begins the names under which goldens are cloned.
const UNNAMED: &str = "parbake-unnamed-";

/// For so long the lock of tart's home is waited for. tart and we ourselves hold it for moments: while a VM gets its
/// name, until a VM that starts is locked itself, and while an image is retired.
const NAMING_WAIT: Duration = Duration::from_secs(10);

/// What is noted of a golden of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The image that it was made from.
    pub(crate) image: Digest,
    /// The reference that it was made of. `None` if an earlier version made it.
    pub(crate) reference: Option<Reference>,
    /// The VM's directory. `None` if an earlier version made it.
    vm: Option<Vm>,
}

/// What lies under the name of a golden that has a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lies {
    /// Nothing.
    Nothing,
    /// The golden that we made.
    Ours,
    /// A golden that an earlier version made, or a VM of somebody else: the mark doesn't say.
    Unknown,
    /// A VM of somebody else.
    Theirs,
}

/// A directory that is told from another one that has its name later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Vm {
    inode: u64,
    made: SystemTime,
}

impl Vm {
    /// The directory at this path. `None` if there is none, or the volume doesn't tell when it was made.
    fn at(path: &Path) -> Option<Self> {
        let found = fs::symlink_metadata(path).ok()?;
        let made = found.created().ok().filter(|_| found.is_dir())?;
        Some(Self {
            inode: found.ino(),
            made,
        })
    }

    fn parse(line: &str) -> Option<Self> {
        let (inode, made) = line.split_once(' ')?;
        let (seconds, nanos) = made.split_once('.')?;
        let made = Duration::from_secs(seconds.parse().ok()?)
            .checked_add(Duration::from_nanos(nanos.parse().ok()?))?;
        Some(Self {
            inode: inode.parse().ok()?,
            made: SystemTime::UNIX_EPOCH.checked_add(made)?,
        })
    }

    fn line(&self) -> String {
        let made = self.made.duration_since(SystemTime::UNIX_EPOCH);
        let made = made.unwrap_or_default();
        let (seconds, nanos) = (made.as_secs(), made.subsec_nanos());
        format!("{} {seconds}.{nanos:09}", self.inode)
    }

    /// Whether what lies there now is this directory. macOS sets the moment of making back where a directory's time of
    /// change is set to an earlier one, as tart does with each use; a directory that is made later is younger.
    fn is(&self, found: Self) -> bool {
        found.inode == self.inode && found.made <= self.made
    }
}

impl Mark {
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::trim);
        let image = lines.next()?.parse().ok()?;
        let reference = lines.next().and_then(|line| line.parse().ok());
        let vm = lines.next().and_then(Vm::parse);
        Some(Self {
            image,
            reference,
            vm,
        })
    }

    fn text(image: Digest, reference: &str, vm: Option<Vm>) -> String {
        let vm = vm.map_or_else(String::new, |vm| format!("{}\n", vm.line()));
        format!("{image}\n{reference}\n{vm}")
    }

    /// What lies in this directory, under the golden's name.
    pub(crate) fn lies(&self, directory: &Path) -> Lies {
        match (fs::symlink_metadata(directory), self.vm) {
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Lies::Nothing,
            (_, None) => Lies::Unknown,
            (_, Some(vm)) => match Vm::at(directory) {
                Some(found) if vm.is(found) => Lies::Ours,
                _ => Lies::Theirs,
            },
        }
    }
}

/// The path of a golden's mark, in this home of tart.
pub(crate) fn mark_path(home: &Path, golden: &str) -> PathBuf {
    home.join(".parbake/goldens").join(golden)
}

/// The name under which a golden is cloned. No VM of others has it.
fn unnamed(golden: &str) -> String {
    format!("{UNNAMED}{golden}")
}

/// The marks of all goldens of ours, by the goldens' names.
pub(crate) fn marks(home: &Path) -> BTreeMap<String, Mark> {
    let entries = fs::read_dir(mark_path(home, "")).into_iter();
    let marks = entries.flatten().flatten().filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        // a mark that is being written
        if name.starts_with('.') {
            return None;
        }
        let text = fs::read_to_string(entry.path()).ok()?;
        Some((name, Mark::parse(&text)?))
    });
    marks.collect()
}

/// A mark, and when it was written.
fn read_mark(path: &Path) -> io::Result<(String, SystemTime)> {
    let mut file = File::open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok((text, file.metadata()?.modified()?))
}

/// Makes goldens, if the agent is configured to.
#[derive(Debug)]
pub(crate) struct Goldens {
    prefix: String,
    home: PathBuf,
    tart: Tart,
    metrics: Metrics,
    naming_wait: Duration,
}

/// Why a golden couldn't be made. The caller tries again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GoldenError {
    /// tart failed.
    #[error(transparent)]
    Tart(#[from] TartError),
    /// The tag moved while the golden was cloned. The golden of the other image was removed again.
    #[error("{reference} was moved to another image while its golden {name} was cloned")]
    Moved { reference: String, name: String },
    /// A VM of somebody else has the golden's name. It stays until somebody renames or removes it.
    #[error(
        "VM {name} has the name of the golden of {reference}, but no mark of parbake's fits it, so somebody else made it \
         and it stays: make room with `tart rename {name} NEW-NAME` or `tart delete {name}`"
    )]
    Theirs { reference: String, name: String },
    /// Somebody else holds tart's lock of its home, under which VMs get their names.
    #[error("giving a golden its name: {0}")]
    Lock(#[from] LockError),
    /// The file that says which image the golden was made from can't be read or written.
    #[error("noting from which image golden {name} was made: {error}")]
    Mark { name: String, error: io::Error },
    /// The new golden can't take its name, or what an earlier try left can't be removed.
    #[error("giving golden {name} its name: {error}")]
    Name { name: String, error: io::Error },
}

impl Goldens {
    /// Goldens whose names have this prefix, in this home of `tart`.
    pub(crate) const fn new(prefix: String, home: PathBuf, tart: Tart, metrics: Metrics) -> Self {
        Self {
            prefix,
            home,
            tart,
            metrics,
            naming_wait: NAMING_WAIT,
        }
    }

    /// Waits so long for tart's lock of its home.
    #[cfg(test)]
    pub(crate) fn with_naming_wait(self, naming_wait: Duration) -> Self {
        Self {
            naming_wait,
            ..self
        }
    }

    /// Removes what an earlier process left of goldens that it didn't finish. Only while nobody makes one.
    pub(crate) fn sweep(&self) {
        let machines = fs::read_dir(cache::vm_directory(&self.home, "")).into_iter();
        for machine in machines.flatten().flatten() {
            let name = machine.file_name();
            let is_unnamed = name.as_encoded_bytes().starts_with(UNNAMED.as_bytes());
            if is_unnamed && let Err(error) = fs::remove_dir_all(machine.path()) {
                warn!(vm = ?name, %error, "what is left of a golden can't be removed; the next start tries again");
            }
        }
    }

    /// Makes the golden of this reference from this image, unless it is there already. Replaces a golden of ours of
    /// another image, and no other VM.
    ///
    /// tart clones the image that the reference names at that moment. `names` says afterwards whether the reference
    /// still names `image`. If not, the golden is removed again.
    pub(crate) async fn make(
        &self,
        reference: &str,
        image: Digest,
        names: impl Fn() -> bool,
    ) -> Result<(), GoldenError> {
        if self.exists(reference, image) {
            return Ok(());
        }
        let name = golden_name(&self.prefix, reference);
        match self.lies(&name)? {
            Lies::Nothing => {}
            Lies::Ours => self.counted("delete", self.tart.delete(&name).await)?,
            // the mark may be of an earlier version, but not of this VM
            Lies::Unknown | Lies::Theirs => return Err(theirs(reference, name)),
        }
        self.drop_unnamed(&name).await?;
        let unnamed = unnamed(&name);
        self.counted("clone", self.tart.clone(reference, &unnamed).await)?;
        if !names() {
            self.drop_unnamed(&name).await?;
            let reference = reference.to_owned();
            return Err(GoldenError::Moved { reference, name });
        }
        match self.give_name(&name, reference, image).await {
            Ok(()) => {}
            Err(GoldenError::Name { error, .. })
                if error.kind() == io::ErrorKind::AlreadyExists =>
            {
                self.drop_unnamed(&name).await?;
                return Err(theirs(reference, name));
            }
            failed => return failed,
        }
        info!(reference, golden = name, "golden is made");
        Ok(())
    }

    /// Says for good of which image the golden is, and gives the golden its name. Under tart's lock of its home, so
    /// that the mark isn't taken for the old golden's and retired with that one (`store::retire`).
    async fn give_name(
        &self,
        name: &str,
        reference: &str,
        image: Digest,
    ) -> Result<(), GoldenError> {
        let made = cache::vm_directory(&self.home, &unnamed(name));
        let golden = cache::vm_directory(&self.home, name);
        let path = mark_path(&self.home, name);
        let (home, naming_wait) = (self.home.clone(), self.naming_wait);
        let (name, reference) = (name.to_owned(), reference.to_owned());
        let named = tokio::task::spawn_blocking(move || {
            let _locked = platform::lock_directory(&home, naming_wait)?;
            let mark = Mark::text(image, &reference, Vm::at(&made));
            if let Err(error) = write_mark(&path, &mark) {
                return Err(GoldenError::Mark { name, error });
            }
            let renamed = platform::rename_new(&made, &golden);
            renamed.map_err(|error| GoldenError::Name { name, error })
        });
        let died = |error| LockError::Io {
            path: self.home.clone(),
            error: io::Error::other(error),
        };
        named.await.map_err(died)?
    }

    /// What lies under a golden's name. A VM is ours only if its mark fits it. The mark of an earlier version fits the
    /// VM that is older than the mark.
    fn lies(&self, name: &str) -> Result<Lies, GoldenError> {
        let directory = cache::vm_directory(&self.home, name);
        let (text, written) = match read_mark(&mark_path(&self.home, name)) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(unmarked(&directory));
            }
            Err(error) => {
                let name = name.to_owned();
                return Err(GoldenError::Mark { name, error });
            }
        };
        // a mark that can't be read any more fits nothing
        let mark = Mark::parse(&text);
        let lies = mark.map_or_else(|| unmarked(&directory), |mark| mark.lies(&directory));
        let is_older = || Vm::at(&directory).is_some_and(|vm| vm.made <= written);
        Ok(match lies {
            Lies::Unknown if is_older() => Lies::Ours,
            lies => lies,
        })
    }

    /// Removes what an earlier try to make this golden left.
    async fn drop_unnamed(&self, name: &str) -> Result<(), GoldenError> {
        let directory = cache::vm_directory(&self.home, &unnamed(name));
        let removed = blocking(move || match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
        removed.await.map_err(|error| GoldenError::Name {
            name: name.to_owned(),
            error,
        })
    }

    /// Whether the golden of this reference exists and is of this image. Only then does the image count as present.
    ///
    /// A golden that an earlier version made is believed by its name. Its mark gets the VM's directory here, if that is
    /// older than the mark: tart made the directory before.
    pub(crate) fn exists(&self, reference: &str, image: Digest) -> bool {
        let name = golden_name(&self.prefix, reference);
        let directory = cache::vm_directory(&self.home, &name);
        if !cache::is_machine(&directory) {
            return false;
        }
        let path = mark_path(&self.home, &name);
        // without our file: the golden of a reference by digest can only be of that image
        let by_name = reference.ends_with(&image.to_string());
        let Ok((text, written)) = read_mark(&path) else {
            return by_name;
        };
        let Some(mark) = Mark::parse(&text) else {
            return false;
        };
        match mark.lies(&directory) {
            Lies::Nothing => false,
            Lies::Theirs => by_name,
            Lies::Ours => mark.image == image,
            Lies::Unknown => {
                let vm = Vm::at(&directory).filter(|vm| vm.made <= written);
                if mark.image == image && vm.is_some() {
                    let mark = Mark::text(image, reference, vm);
                    if let Err(error) = durable::write(&path, mark.as_bytes(), durable::PUBLIC) {
                        warn!(golden = name, %error, "which VM the golden is can't be noted; it is tried again");
                    }
                }
                mark.image == image
            }
        }
    }

    fn counted(
        &self,
        operation: &'static str,
        result: Result<(), TartError>,
    ) -> Result<(), TartError> {
        let outcome = match &result {
            Ok(()) => "ok",
            Err(error) => error.outcome(),
        };
        let label = OperationLabel { operation, outcome };
        self.metrics.tart_operations.get_or_create(&label).inc();
        result
    }
}

/// Writes a golden's mark, for good.
fn write_mark(path: &Path, mark: &str) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    durable::sweep_of(path)?;
    durable::write(path, mark.as_bytes(), durable::PUBLIC)
}

/// What lies in a directory under a golden's name without a mark.
fn unmarked(directory: &Path) -> Lies {
    match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Lies::Nothing,
        _ => Lies::Theirs,
    }
}

fn theirs(reference: &str, name: String) -> GoldenError {
    let reference = reference.to_owned();
    GoldenError::Theirs { reference, name }
}

async fn blocking(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::tart::tests::program;

    const REFERENCE: &str = "ghcr.io/org/image:1";

    /// A tart that notes its clones, and does what the script says before it makes one.
    fn goldens(home: &tempfile::TempDir, script: &str) -> Goldens {
        let binary = home.path().join("tart");
        let text = format!(
            "#!/bin/sh\ncd \"$TART_HOME\"\necho \"$1 $$\" >> calls\n\
             if [ $1 = delete ]; then rm -r vms/$2; exit; fi\n{script}\n\
             mkdir -p vms/$3\ntouch vms/$3/disk.img vms/$3/config.json vms/$3/nvram.bin\n"
        );
        program(&binary, &text);
        let tart = Tart::new(binary, home.path())
            .with_time_limit(Duration::from_secs(2))
            .with_pause(Duration::from_millis(1));
        let prefix = "golden-".to_owned();
        Goldens::new(prefix, home.path().into(), tart, Metrics::new().0)
    }

    /// The golden's name, and its directory.
    fn place(home: &tempfile::TempDir) -> (String, PathBuf) {
        let name = golden_name("golden-", REFERENCE);
        let directory = cache::vm_directory(home.path(), &name);
        (name, directory)
    }

    /// Somebody makes a VM in this directory.
    fn make_theirs(directory: &Path) {
        fs::create_dir_all(directory).unwrap();
        for part in cache::PARTS {
            fs::write(directory.join(part), "theirs").unwrap();
        }
    }

    fn calls(home: &tempfile::TempDir) -> Vec<String> {
        let calls = fs::read_to_string(home.path().join("calls")).unwrap_or_default();
        calls.lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn a_clone_that_hangs_is_killed_as_a_group_and_tried_again() {
        let home = tempfile::tempdir().unwrap();
        let hang = "[ -e hung ] || { touch hung; sleep 600 & echo \"child $!\" >> calls; wait; }";
        let goldens = goldens(&home, hang);
        let image = Digest::of(b"image");
        goldens.make(REFERENCE, image, || true).await.unwrap();
        assert!(goldens.exists(REFERENCE, image));
        let calls = calls(&home);
        let of = |word: &str| calls.iter().filter(|call| call.starts_with(word)).count();
        assert_eq!((of("clone"), of("child")), (2, 1), "{calls:?}");
        let child = calls.iter().find_map(|call| call.strip_prefix("child "));
        let state = format!("/proc/{}/stat", child.unwrap());
        // reaped, or a zombie that nobody of ours is left to reap
        let alive = fs::read_to_string(state).is_ok_and(|stat| !stat.contains(") Z "));
        assert!(!alive, "its child still runs");
    }

    #[tokio::test]
    async fn a_golden_is_of_one_reference_and_one_image() {
        let home = tempfile::tempdir().unwrap();
        let goldens = goldens(&home, "");
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        goldens.make(REFERENCE, old, || true).await.unwrap();
        goldens.make(REFERENCE, old, || true).await.unwrap();
        assert_eq!(calls(&home).len(), 1, "what is there isn't made again");
        assert!(goldens.exists(REFERENCE, old) && !goldens.exists(REFERENCE, new));
        assert!(!goldens.exists("ghcr.io/org/image:2", old));
        // the tag moved
        goldens.make(REFERENCE, new, || true).await.unwrap();
        assert!(goldens.exists(REFERENCE, new) && !goldens.exists(REFERENCE, old));
        let golden = golden_name("golden-", REFERENCE);
        fs::remove_dir_all(cache::vm_directory(home.path(), &golden)).unwrap();
        assert!(!goldens.exists(REFERENCE, new));
        goldens.make(REFERENCE, new, || true).await.unwrap();
        assert!(goldens.exists(REFERENCE, new));
        // the tag moved while the golden was made
        let other = Digest::of(b"other");
        let error = goldens.make(REFERENCE, other, || false).await.unwrap_err();
        assert!(error.to_string().contains("another image"), "{error}");
        assert!(!goldens.exists(REFERENCE, other) && !goldens.exists(REFERENCE, new));
    }

    #[tokio::test]
    async fn a_vm_that_somebody_made_under_a_golden_s_name_is_not_the_golden() {
        let home = tempfile::tempdir().unwrap();
        let goldens = goldens(&home, "");
        let image = Digest::of(b"image");
        let (name, directory) = place(&home);
        let lies = || marks(home.path())[&name].lies(&directory);
        goldens.make(REFERENCE, image, || true).await.unwrap();
        assert_eq!(lies(), Lies::Ours);
        // what is read of a mark is what was written
        let mark = &marks(home.path())[&name];
        assert_eq!(mark.vm, Vm::at(&directory));
        let moved = home.path().join("moved");
        fs::rename(&directory, &moved).unwrap();
        assert_eq!(lies(), Lies::Nothing);
        make_theirs(&directory);
        assert_eq!(lies(), Lies::Theirs);
        assert!(!goldens.exists(REFERENCE, image));
        fs::remove_dir_all(&directory).unwrap();
        fs::rename(moved, &directory).unwrap();
        assert!(goldens.exists(REFERENCE, image));
        // another directory with the same inode is younger, and macOS makes our own older
        let vm = Vm::at(&directory).unwrap();
        let of = |made| Vm { made, ..vm };
        assert!(!vm.is(of(vm.made + Duration::from_nanos(1))));
        assert!(vm.is(of(vm.made - Duration::from_secs(1))));
    }

    #[tokio::test]
    async fn a_vm_of_somebody_else_is_left_alone_and_the_golden_refused() {
        let home = tempfile::tempdir().unwrap();
        let goldens = goldens(&home, "");
        let image = Digest::of(b"image");
        let (name, directory) = place(&home);
        // without a mark, and with the mark of a golden that was removed
        for of in [image, Digest::of(b"next")] {
            make_theirs(&directory);
            let error = goldens.make(REFERENCE, of, || true).await.unwrap_err();
            let message = error.to_string();
            for word in [&name, REFERENCE, "no mark", "tart rename", "tart delete"] {
                assert!(message.contains(word), "{message}");
            }
            let disk = fs::read(directory.join(cache::DISK)).unwrap();
            assert_eq!(disk, b"theirs");
            assert!(!goldens.exists(REFERENCE, of));
            fs::remove_dir_all(&directory).unwrap();
            goldens.make(REFERENCE, of, || true).await.unwrap();
            assert!(goldens.exists(REFERENCE, of));
            fs::remove_dir_all(&directory).unwrap();
        }
        assert_eq!(calls(&home).len(), 2, "nothing is cloned in vain");
    }

    #[tokio::test]
    async fn a_golden_of_an_earlier_version_is_not_made_again_and_gets_its_vm_noted() {
        let home = tempfile::tempdir().unwrap();
        let goldens = goldens(&home, "");
        let image = Digest::of(b"image");
        let (name, directory) = place(&home);
        let lies = || marks(home.path())[&name].lies(&directory);
        goldens.make(REFERENCE, image, || true).await.unwrap();
        let path = mark_path(home.path(), &name);
        let made = Vm::at(&directory).unwrap().made;
        // a VM that was made after the mark may be anybody's
        for (written, of) in [
            (made - Duration::from_secs(9), Lies::Unknown),
            (made + Duration::from_secs(9), Lies::Ours),
        ] {
            fs::write(&path, format!("{image}\n")).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(written).unwrap();
            assert_eq!(lies(), Lies::Unknown);
            assert!(goldens.exists(REFERENCE, image));
            assert_eq!(lies(), of);
        }
        goldens.make(REFERENCE, image, || true).await.unwrap();
        assert_eq!(calls(&home).len(), 1, "it isn't made again");
        assert!(marks(home.path())[&name].reference.is_some());
    }

    #[tokio::test]
    async fn a_vm_that_takes_the_name_while_the_golden_is_cloned_stays() {
        let home = tempfile::tempdir().unwrap();
        let (name, directory) = place(&home);
        let goldens = goldens(&home, &format!("mkdir -p vms/{name}"));
        let image = Digest::of(b"image");
        let error = goldens.make(REFERENCE, image, || true).await.unwrap_err();
        assert!(matches!(error, GoldenError::Theirs { .. }), "{error}");
        assert!(directory.exists() && !goldens.exists(REFERENCE, image));
        let machines = fs::read_dir(directory.parent().unwrap()).unwrap();
        assert_eq!(machines.count(), 1, "the clone is removed");
    }

    #[tokio::test]
    async fn what_a_cut_off_try_left_is_of_no_image_and_replaced() {
        let home = tempfile::tempdir().unwrap();
        let cut = "if [ -e cut ]; then mkdir -p vms/$3\n\
             touch vms/$3/disk.img vms/$3/config.json vms/$3/nvram.bin; exit 1; fi\n\
             [ ! -e vms/$3 ] || exit 1";
        let goldens = goldens(&home, cut);
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        goldens.make(REFERENCE, old, || true).await.unwrap();
        fs::write(home.path().join("cut"), "").unwrap();
        assert!(goldens.make(REFERENCE, new, || true).await.is_err());
        let golden = golden_name("golden-", REFERENCE);
        let left = cache::vm_directory(home.path(), &unnamed(&golden));
        assert!(cache::is_machine(&left));
        // the tag moves back: what is there isn't taken for the golden of before
        assert!(!goldens.exists(REFERENCE, old) && !goldens.exists(REFERENCE, new));
        fs::remove_file(home.path().join("cut")).unwrap();
        goldens.make(REFERENCE, old, || true).await.unwrap();
        assert!(goldens.exists(REFERENCE, old) && !left.exists());
        // a crash between the mark and the name: the mark fits nothing that is there
        for sweeps in [false, true] {
            fs::rename(cache::vm_directory(home.path(), &golden), &left).unwrap();
            assert!(!goldens.exists(REFERENCE, old));
            if sweeps {
                goldens.sweep();
                assert!(!left.exists());
            }
            goldens.make(REFERENCE, old, || true).await.unwrap();
            assert!(goldens.exists(REFERENCE, old) && !left.exists());
        }
    }

    #[tokio::test]
    async fn a_golden_of_an_earlier_version_is_replaced_when_its_mark_is_younger() {
        let home = tempfile::tempdir().unwrap();
        let goldens = goldens(&home, "");
        let (old, new) = (Digest::of(b"old"), Digest::of(b"new"));
        let name = golden_name("golden-", REFERENCE);
        goldens.make(REFERENCE, old, || true).await.unwrap();
        let made = Vm::at(&cache::vm_directory(home.path(), &name)).unwrap();
        let path = mark_path(home.path(), &name);
        let marked_at = |moment| {
            fs::write(&path, format!("{old}\n")).unwrap();
            let file = File::options().write(true).open(&path).unwrap();
            file.set_modified(moment).unwrap();
        };
        marked_at(made.made - Duration::from_secs(9));
        let error = goldens.make(REFERENCE, new, || true).await.unwrap_err();
        assert!(matches!(error, GoldenError::Theirs { .. }), "{error}");
        marked_at(made.made + Duration::from_secs(9));
        goldens.make(REFERENCE, new, || true).await.unwrap();
        assert!(goldens.exists(REFERENCE, new));
    }
}
