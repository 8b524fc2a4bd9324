//! Which images the tart of this host can use: its version, and the version of macOS.
//!
//! tart before 2.36 takes the record of a stacked image for an incomplete one. From 2.36 on it has such images, and
//! makes VMs of them on macOS 27 or later, which has `DiskImageKit`. The version is asked again when tart's program is
//! another file than before.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, mpsc},
    time::{Duration, Instant, SystemTime},
};

use proto::{Reason, image::Format};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::lock::lock;

/// The first tart that has stacked images (tart: its `pull` and `clone` of them came with commit 4ce8a11 of 12 August
/// 2026, eight days after tag 2.35.0; assumed: the release after that is 2.36, which had no tag by 18 August 2026).
const STACKING_TART: Version = Version(2, 36);
/// The first macOS on which tart makes VMs of stacked images (tart of August 2026, Sources/tart/DiskImageStack.swift:
/// isSupported).
const STACKING_MACOS: Version = Version(27, 0);
/// How long tart may take to say its version.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of tart's answer that are read.
const MAX_ANSWER_BYTES: u64 = 4 << 10;
/// Where macOS says its version.
const MACOS_VERSION: &str = "/System/Library/CoreServices/SystemVersion.plist";

/// The first two numbers of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u32, u32);

impl Version {
    /// The first word of a text that is a version, as in `2.36.0`.
    fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(Self::parse)
    }

    fn parse(word: &str) -> Option<Self> {
        let mut numbers = word.split(['.', '-', '+']);
        let first = numbers.next()?.parse().ok()?;
        Some(Self(first, numbers.next()?.parse().ok()?))
    }

    /// Whether a tart of this version has stacked images.
    fn stacks(self) -> Result<(), Unfit> {
        let Self(first, second) = self;
        match self >= STACKING_TART {
            true => Ok(()),
            false => Err(Unfit::Tart(format!("this host has {first}.{second}"))),
        }
    }
}

/// Why this host can't use an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    /// tart is too old, or doesn't say its version.
    #[error("stacked images need tart 2.36 or later, and {0}")]
    Tart(String),
    /// macOS is too old, or doesn't say its version.
    #[error("tart makes VMs of stacked images on macOS 27 or later, and {0}")]
    Macos(String),
}

impl Unfit {
    pub(crate) const fn reason(&self) -> Reason {
        match self {
            Self::Tart(_) => Reason::NeedsNewerTart,
            Self::Macos(_) => Reason::NeedsNewerMacos,
        }
    }
}

/// The file that tart's program is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    inode: u64,
    bytes: u64,
    changed: Option<SystemTime>,
}

/// How long a tart that said no version isn't asked again for images that are here: it may have been busy.
const ASK_AGAIN: Duration = Duration::from_mins(5);

/// What tart said of its version, which file said so, and when.
type Said = (Stamp, Result<Version, String>, Instant);

/// What the tart of this host can use.
#[derive(Debug)]
pub(crate) struct Fitness {
    tart: PathBuf,
    macos: PathBuf,
    /// Locked while tart is asked, so that it is asked once.
    said: Mutex<Option<Said>>,
}

impl Fitness {
    /// With tart's program at this path.
    pub(crate) fn new(tart: PathBuf) -> Self {
        Self {
            tart,
            macos: MACOS_VERSION.into(),
            said: Mutex::default(),
        }
    }

    /// The same, with another file in which macOS says its version.
    #[cfg(test)]
    pub(crate) fn with_macos(mut self, file: PathBuf) -> Self {
        self.macos = file;
        self
    }

    /// Whether tart can use an image of this format from its cache. Blocks while tart is asked for its version.
    ///
    /// # Errors
    /// When it can't, or doesn't say.
    pub(crate) fn may_stage(&self, format: Format) -> Result<(), Unfit> {
        if format == Format::Flat {
            return Ok(());
        }
        match self.tart_version(Duration::ZERO) {
            Ok(found) => found.stacks(),
            Err(error) => Err(Unfit::Tart(format!("this host's is unknown: {error}"))),
        }
    }

    /// Why tart can't use an image of this format that is in its cache already: its version is known, and too old. A
    /// tart that doesn't say its version takes nothing from anybody, and is asked again after some minutes. Any other
    /// is asked once for each program. Blocks while tart is asked.
    pub(crate) fn refuses(&self, format: Format) -> Option<Unfit> {
        if format == Format::Flat {
            return None;
        }
        self.tart_version(ASK_AGAIN).ok()?.stacks().err()
    }

    /// Whether tart can make a VM of an image of this format here.
    ///
    /// # Errors
    /// When it can't, or the host doesn't say.
    pub(crate) fn may_clone(&self, format: Format) -> Result<(), Unfit> {
        if format == Format::Flat {
            return Ok(());
        }
        match self.macos_version() {
            Some(found) if found >= STACKING_MACOS => Ok(()),
            Some(Version(first, second)) => {
                Err(Unfit::Macos(format!("this host has {first}.{second}")))
            }
            None => Err(Unfit::Macos("this host's version is unknown".to_owned())),
        }
    }

    /// What tart says of its version. An answer that didn't come is asked for again after this time.
    fn tart_version(&self, again_after: Duration) -> Result<Version, String> {
        let stamp = stamp(&self.tart).map_err(|error| error.to_string())?;
        let mut said = lock(&self.said);
        if let Some((of, version, at)) = &*said
            && *of == stamp
            && (version.is_ok() || at.elapsed() < again_after)
        {
            return version.clone();
        }
        let asked = ask(&stamp.path, TIME_LIMIT);
        let version = asked.map_err(|error| error.to_string()).and_then(|text| {
            Version::find(&text).ok_or_else(|| {
                let text: String = text.chars().take(80).collect();
                format!("`tart --version` says {text:?}")
            })
        });
        *said = Some((stamp, version.clone(), Instant::now()));
        version
    }

    /// `SystemVersion.plist` is XML, with the version in the string behind its key.
    fn macos_version(&self) -> Option<Version> {
        let text = fs::read_to_string(&self.macos).ok()?;
        let (_, rest) = text.split_once("<key>ProductVersion</key>")?;
        let (_, rest) = rest.split_once("<string>")?;
        let version = rest.split_once("</string>")?.0.trim();
        // macOS 27 may say no second number
        Version::parse(version).or_else(|| Some(Version(version.parse().ok()?, 0)))
    }
}

/// The file behind a path, or behind a name in `PATH`. Links are followed, as Homebrew makes them.
fn stamp(program: &Path) -> io::Result<Stamp> {
    let found = match program.components().count() {
        1 => {
            let paths = std::env::var_os("PATH").unwrap_or_default();
            let mut places = std::env::split_paths(&paths).map(|place| place.join(program));
            places.find(|place| place.is_file())
        }
        _ => None,
    };
    let path = fs::canonicalize(found.as_deref().unwrap_or(program))
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))?;
    let file = fs::metadata(&path)?;
    Ok(Stamp {
        path,
        inode: file.ino(),
        bytes: file.len(),
        changed: file.modified().ok(),
    })
}

/// What `tart --version` prints. A process that hangs is killed, with its children.
fn ask(program: &Path, limit: Duration) -> io::Result<String> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let stdout = child.stdout.take();
    let (done, answer) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let read = stdout.map(|pipe| pipe.take(MAX_ANSWER_BYTES).read_to_end(&mut text));
        let ended = child.wait();
        let said = read.transpose().and_then(|_| match ended?.success() {
            true => Ok(String::from_utf8_lossy(&text).trim().to_owned()),
            false => Err(io::Error::other("`tart --version` failed")),
        });
        // nobody listens any more after the limit
        drop(done.send(said));
    });
    answer.recv_timeout(limit).unwrap_or_else(|_| {
        if let Some(group) = group
            && let Err(error) = kill_process_group(group, Signal::KILL)
        {
            tracing::debug!(%error, "a `tart --version` that hung can't be killed");
        }
        Err(io::Error::other("`tart --version` hung"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tart::tests::program;

    fn fitness(home: &tempfile::TempDir, said: &str) -> Fitness {
        let tart = home.path().join("tart");
        let text = format!(
            "#!/bin/sh\necho x >> {}/asked\n{said}\n",
            home.path().display()
        );
        program(&tart, &text);
        Fitness::new(tart).with_macos(home.path().join("macos"))
    }

    fn asked(home: &tempfile::TempDir) -> usize {
        let asked = fs::read_to_string(home.path().join("asked"));
        asked.map_or(0, |text| text.lines().count())
    }

    #[test]
    fn versions_are_compared_by_their_first_two_numbers() {
        for (text, stacks) in [
            ("2.32.1", false),
            ("2.35.9", false),
            ("2.36.0", true),
            ("2.36", true),
            ("tart 2.40.1-rc1", true),
            ("3.0.0", true),
            ("10.1.0", true),
        ] {
            let found = Version::find(text).unwrap();
            assert_eq!(found >= STACKING_TART, stacks, "{text}");
        }
        for text in ["", "tart", "SNAPSHOT", "2", "v2.36"] {
            assert_eq!(Version::find(text), None, "{text}");
        }
    }

    #[test]
    fn an_older_tart_declines_stacked_images_by_name_and_is_asked_once() {
        let home = tempfile::tempdir().unwrap();
        let fitness = fitness(&home, "echo 2.35.0");
        assert_eq!(fitness.may_stage(Format::Flat), Ok(()));
        assert_eq!(asked(&home), 0);
        for _ in 0..3 {
            let unfit = fitness.may_stage(Format::Stacked).unwrap_err();
            assert_eq!(unfit.reason(), Reason::NeedsNewerTart);
            assert!(unfit.to_string().contains("2.35"), "{unfit}");
        }
        assert_eq!(asked(&home), 1);
    }

    #[test]
    fn another_program_is_asked_again() {
        let home = tempfile::tempdir().unwrap();
        let old = fitness(&home, "echo 2.35.0");
        old.may_stage(Format::Stacked).unwrap_err();
        // an upgrade puts another file there, as Homebrew's link does
        let new = home.path().join("new");
        program(&new, "#!/bin/sh\necho 2.36.0\n");
        fs::rename(&new, home.path().join("tart")).unwrap();
        assert_eq!(old.may_stage(Format::Stacked), Ok(()));
        // and may go back
        program(&new, "#!/bin/sh\necho 2.32.1\n");
        fs::remove_file(home.path().join("tart")).unwrap();
        std::os::unix::fs::symlink(&new, home.path().join("tart")).unwrap();
        old.may_stage(Format::Stacked).unwrap_err();
    }

    #[test]
    fn a_tart_that_says_nothing_is_too_old() {
        let home = tempfile::tempdir().unwrap();
        for (said, cause) in [
            ("echo SNAPSHOT", "SNAPSHOT"),
            ("exit 1", "failed"),
            ("echo 2.36.0; exit 1", "failed"),
        ] {
            let unfit = fitness(&home, said).may_stage(Format::Stacked).unwrap_err();
            assert!(unfit.to_string().contains(cause), "{unfit}");
        }
        let none = Fitness::new(home.path().join("none"));
        let unfit = none.may_stage(Format::Stacked).unwrap_err();
        assert_eq!(unfit.reason(), Reason::NeedsNewerTart);
        assert!(unfit.to_string().contains("none"), "{unfit}");
    }

    #[test]
    fn a_tart_that_failed_once_is_asked_again_about_what_is_there() {
        let home = tempfile::tempdir().unwrap();
        let marker = home.path().join("failed");
        let marker = marker.display();
        let once = format!("[ -e {marker} ] && echo 2.35.0 || {{ touch {marker}; exit 1; }}");
        let fitness = fitness(&home, &once);
        assert_eq!(fitness.refuses(Format::Stacked), None);
        // not at once
        assert_eq!(fitness.refuses(Format::Stacked), None);
        assert_eq!(asked(&home), 1);
        fitness.tart_version(Duration::ZERO).unwrap();
        assert!(fitness.refuses(Format::Stacked).is_some());
        assert_eq!(asked(&home), 2);
    }

    #[test]
    fn a_tart_refuses_what_is_there_only_if_its_version_is_known_and_is_asked_once() {
        for (said, refused) in [
            ("echo 2.35.0", true),
            ("echo 2.36.0", false),
            ("echo SNAPSHOT", false),
            ("exit 1", false),
        ] {
            let home = tempfile::tempdir().unwrap();
            let fitness = fitness(&home, said);
            assert_eq!(fitness.refuses(Format::Flat), None);
            assert_eq!(asked(&home), 0);
            for _ in 0..3 {
                let unfit = fitness.refuses(Format::Stacked);
                assert_eq!(unfit.is_some(), refused, "{said}");
                assert!(unfit.is_none_or(|unfit| unfit.reason() == Reason::NeedsNewerTart));
            }
            assert_eq!(asked(&home), 1, "{said}");
        }
        let none = Fitness::new("/nowhere/tart".into());
        assert_eq!(none.refuses(Format::Stacked), None);
    }

    #[test]
    fn a_tart_that_hangs_is_given_up() {
        let home = tempfile::tempdir().unwrap();
        fitness(&home, "sleep 600");
        let error = ask(&home.path().join("tart"), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("hung"), "{error}");
    }

    #[test]
    fn vms_of_stacked_images_need_macos_27() {
        let home = tempfile::tempdir().unwrap();
        let fitness = fitness(&home, "echo 2.36.0");
        let says = |version: &str| {
            let text = format!(
                "<plist><dict>\n<key>ProductBuildVersion</key>\n<string>26A1</string>\n\
                 <key>ProductVersion</key>\n\t<string>{version}</string>\n</dict></plist>"
            );
            fs::write(home.path().join("macos"), text).unwrap();
            fitness.may_clone(Format::Stacked)
        };
        let unknown = fitness.may_clone(Format::Stacked).unwrap_err();
        assert_eq!(unknown.reason(), Reason::NeedsNewerMacos);
        assert!(says("26.4").unwrap_err().to_string().contains("26.4"));
        assert!(says("x").is_err());
        for version in ["27.0", "27", "27.1.1", "28.0"] {
            assert_eq!(says(version), Ok(()), "{version}");
        }
        assert_eq!(fitness.may_clone(Format::Flat), Ok(()));
    }
}
