//! `parbake-agent install` and `uninstall`: the `LaunchDaemon`, the rotation of its log, its directories and its first
//! settings.
//!
//! [`Layout`] decides what is written, and touches nothing. `--print` shows it. `--root` writes it below a directory,
//! for packages and tests. A plain `install` writes it and makes launchd load it. The templates are in
//! `deploy/launchd`. `install` doesn't enrol the host. `uninstall` leaves settings, keys, logs and tart's home alone.

use std::{
    borrow::Cow,
    fs::DirBuilder,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Component, Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use tracing::{info, warn};

use crate::cli::{Install, Shared, Uninstall};

/// The job's name in launchd.
const LABEL: &str = "dev.parbake.agent";
const PLIST: &str = "/Library/LaunchDaemons/dev.parbake.agent.plist";
const NEWSYSLOG: &str = "/etc/newsyslog.d/parbake-agent.conf";
const CONFIG: &str = "/etc/parbake/agent.toml";
const LOG_DIR: &str = "/var/log/parbake-agent";
const LOG: &str = "/var/log/parbake-agent/agent.log";
/// The file to which launchd writes stderr.
const ERRORS: &str = "/var/log/parbake-agent/agent.err";

const PLIST_TEMPLATE: &str = include_str!("../../deploy/launchd/dev.parbake.agent.plist");
const NEWSYSLOG_TEMPLATE: &str = include_str!("../../deploy/launchd/newsyslog.conf");
const CONFIG_TEMPLATE: &str = include_str!("../../deploy/launchd/agent.toml");

/// How long a command may take. Directory services may be slow, and launchd may wait for a job that ends (`ExitTimeOut`
/// in the plist is 20 s).
const COMMAND_TIMEOUT: Duration = Duration::from_secs(40);
/// How long a removed job may take to go. `bootout` may return earlier, and `bootstrap` fails while the job is still
/// there.
const GONE_TIMEOUT: Duration = Duration::from_secs(30);
const GONE_POLL: Duration = Duration::from_millis(200);

/// Installs the agent, or shows what would be installed.
pub(crate) async fn install(options: &Install, shared: &Shared) -> anyhow::Result<bool> {
    let layout = Layout::new(options, shared)?;
    if options.print {
        io::stdout()
            .write_all(layout.text().as_bytes())
            .context("writing to stdout")?;
        return Ok(true);
    }
    if let Some(root) = &options.root {
        layout.write(root, None)?;
        for entry in layout.entries.iter().filter(|entry| entry.users) {
            info!(path = %entry.path.display(), user = options.user, "has to belong to this user on the target");
        }
        return Ok(true);
    }
    root_on_macos("install")?;
    let account = Account::of(&options.user).await?;
    check_binary(&layout.binary)?;
    check_tart_home(&layout.tart_home, &account, Path::new("/Volumes"))?;
    let changed = layout.write(Path::new("/"), Some(&account))?;
    Launchd::new("/bin/launchctl")
        .load(Path::new(PLIST), changed)
        .await?;
    info!(
        plist = PLIST,
        config = CONFIG,
        log = LOG_DIR,
        changed,
        "installed"
    );
    Ok(true)
}

/// Stops the job and removes its plist and its log rotation.
pub(crate) async fn uninstall(options: &Uninstall) -> anyhow::Result<bool> {
    if options.root.is_none() {
        root_on_macos("uninstall")?;
        Launchd::new("/bin/launchctl").unload().await?;
    }
    let root = options.root.as_deref().unwrap_or(Path::new("/"));
    for path in [PLIST, NEWSYSLOG] {
        let path = below(root, Path::new(path));
        match std::fs::remove_file(&path) {
            Ok(()) => info!(path = %path.display(), "removed"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
        }
    }
    info!(
        config = CONFIG,
        log = LOG_DIR,
        "settings, keys, logs and images stay"
    );
    Ok(true)
}

fn root_on_macos(command: &str) -> anyhow::Result<()> {
    ensure!(
        cfg!(target_vendor = "apple"),
        "launchd is macOS's: `parbake-agent {command}` works here with --root DIR{} only",
        if command == "install" {
            " or --print"
        } else {
            ""
        }
    );
    ensure!(
        rustix::process::geteuid().is_root(),
        "`parbake-agent {command}` writes to /Library and /etc: run it with sudo"
    );
    Ok(())
}

/// Everything that is written, in this order.
#[derive(Debug)]
struct Layout {
    binary: PathBuf,
    tart_home: PathBuf,
    entries: Vec<Entry>,
}

/// A directory or a file.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    mode: u32,
    /// Whether it belongs to the user that runs tart. Otherwise it belongs to root.
    users: bool,
    /// A file's content. None for a directory.
    content: Option<String>,
    /// Whether an existing one is left alone.
    keep: bool,
}

impl Layout {
    fn new(options: &Install, shared: &Shared) -> anyhow::Result<Self> {
        if let Some(config) = &shared.config {
            ensure!(
                config == Path::new(CONFIG),
                "--config: the installed agent reads {CONFIG}; put the settings there first, and they are kept"
            );
        }
        let user = account_name("--user", &options.user)?;
        let group = account_name("--group", &options.group)?;
        let home = match &options.home {
            Some(home) => home.clone(),
            None => Path::new("/Users").join(user),
        };
        plain("--home", &home)?;
        let tart_home = shared.tart_home.clone().unwrap_or(home.join(".tart"));
        let binary = match &options.binary {
            Some(binary) => binary.clone(),
            None => std::env::current_exe().context("finding this program; --binary names it")?,
        };
        let state_dir = shared.state_dir.as_deref();
        let state_dir = state_dir.unwrap_or(Path::new("/var/lib/parbake-agent"));
        let value = |name: &str| -> Option<anyhow::Result<&str>> {
            Some(match name {
                "BINARY" => plain("--binary", &binary),
                "CONFIG" => Ok(CONFIG),
                "LOG_DIR" => Ok(LOG_DIR),
                "USER" => Ok(user),
                "GROUP" => Ok(group),
                "HOME" => plain("--home", &home),
                "STATE_DIR" => plain("--state-dir", state_dir),
                "TART_HOME" => plain("--tart-home", &tart_home),
                "TART_BINARY" => plain("--tart-binary", &options.tart_binary),
                _ => return None,
            })
        };
        let directory = |path: &Path, mode, users| Entry {
            path: path.into(),
            mode,
            users,
            content: None,
            keep: false,
        };
        let file = |path: &str, mode, keep, content| Entry {
            path: path.into(),
            mode,
            users: false,
            content: Some(content),
            keep,
        };
        // launchd and the agent write to these files as the user, and can't make files in the directory
        let log = |path: &str| Entry {
            users: true,
            ..file(path, 0o640, true, String::new())
        };
        let config = fill(CONFIG_TEMPLATE, &value, toml_string)?;
        let newsyslog = fill(NEWSYSLOG_TEMPLATE, &value, Cow::Borrowed)?;
        let plist = fill(PLIST_TEMPLATE, &value, xml_text)?;
        Ok(Self {
            entries: vec![
                directory(Path::new("/etc/parbake"), 0o755, false),
                directory(state_dir, 0o700, true),
                // The directory belongs to root. newsyslog renames, makes, packs and chowns files there as root, and
                // follows links at their names.
                directory(Path::new(LOG_DIR), 0o755, false),
                log(LOG),
                log(ERRORS),
                file(CONFIG, 0o644, true, config),
                file(NEWSYSLOG, 0o644, false, newsyslog),
                // last: an earlier crash leaves nothing that launchd would start at the next boot
                file(PLIST, 0o644, false, plist),
            ],
            binary,
            tart_home,
        })
    }

    /// Every file and directory with its path, as `--print` shows it.
    fn text(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        for entry in &self.entries {
            let owner = if entry.users { "user" } else { "root" };
            let path = entry.path.display();
            let (mode, content) = (entry.mode, entry.content.as_deref().unwrap_or_default());
            let slash = if entry.content.is_none() { "/" } else { "" };
            writeln!(text, "==> {path}{slash} ({mode:o}, {owner})\n{content}")
                .expect("a String takes every text");
        }
        text
    }

    /// Writes the files and directories below `root`. Returns whether a file changed.
    fn write(&self, root: &Path, account: Option<&Account>) -> anyhow::Result<bool> {
        let mut changed = false;
        for entry in &self.entries {
            let path = below(root, &entry.path);
            let wrote = match &entry.content {
                None => make_directory(&path, entry.mode),
                Some(content) => write_file(&path, content, entry.mode, entry.keep),
            };
            let wrote = wrote.with_context(|| format!("writing {}", path.display()))?;
            if let Some(account) = account {
                let owner = match (entry.users, &entry.content) {
                    (true, _) => Some((account.uid, Some(account.gid))),
                    (false, None) => Some((0, None)),
                    (false, Some(_)) => None,
                };
                if let Some((uid, gid)) = owner {
                    std::os::unix::fs::lchown(&path, Some(uid), gid)
                        .with_context(|| format!("giving {} to its owner", path.display()))?;
                }
            }
            if entry.path == Path::new(LOG_DIR) {
                // with earlier versions, the directory belonged to the user
                drop_links(&path).with_context(|| format!("tidying {}", path.display()))?;
            }
            changed |= wrote && entry.content.is_some();
        }
        Ok(changed)
    }
}

/// The place of `path` below `root`.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn make_directory(path: &Path, mode: u32) -> io::Result<bool> {
    if path.is_dir() {
        // also for an existing directory: if others could read the state directory, they could read the host's key
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        return Ok(false);
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    DirBuilder::new().mode(mode).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(true)
}

/// Removes links and special files from a directory of root's, because root would rotate what a link leads to.
/// Directories and plain files with one name stay.
fn drop_links(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // `metadata` of an entry describes a link itself, not its target
        let found = entry.metadata()?;
        if !found.is_dir() && (!found.is_file() || found.nlink() > 1) {
            warn!(path = %entry.path().display(), "removed: a link among the logs");
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Writes a new file beside the old one, syncs it and renames it. A crash leaves the old file or the new one, and
/// launchd never reads half a file.
fn write_file(path: &Path, content: &str, mode: u32, keep: bool) -> io::Result<bool> {
    match std::fs::read(path) {
        Ok(_) if keep => return Ok(false),
        Ok(old) if old == content.as_bytes() => {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
            return Ok(false);
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(directory)?;
    // an interrupted write leaves a temporary file, which launchd and newsyslog ignore
    durable::sweep_of(path)?;
    durable::write(path, content.as_bytes(), mode)?;
    Ok(true)
}

/// Replaces every `@NAME@` in one pass, so that a value that looks like a name isn't replaced.
fn fill<'a>(
    template: &str,
    value: &impl Fn(&str) -> Option<anyhow::Result<&'a str>>,
    escape: impl Fn(&'a str) -> Cow<'a, str>,
) -> anyhow::Result<String> {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('@') {
        filled.push_str(before);
        match after
            .split_once('@')
            .and_then(|(name, rest)| Some((value(name)?, rest)))
        {
            Some((value, after)) => {
                filled.push_str(&escape(value?));
                rest = after;
            }
            None => {
                filled.push('@');
                rest = after;
            }
        }
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Escapes text between XML tags. `>` and quotes needn't be escaped there; escaped, the text may stand anywhere.
fn xml_text(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'']) {
        return text.into();
    }
    text.chars()
        .map(|c| match c {
            '&' => "&amp;".into(),
            '<' => "&lt;".into(),
            '>' => "&gt;".into(),
            '"' => "&quot;".into(),
            '\'' => "&apos;".into(),
            c => Cow::Owned(c.to_string()),
        })
        .collect::<String>()
        .into()
}

fn toml_string(text: &str) -> Cow<'_, str> {
    toml::Value::String(text.to_owned()).to_string().into()
}

/// A path that a plist and a settings file can hold: absolute, without `..`, UTF-8, and without control characters,
/// which XML can't write.
fn plain<'a>(option: &str, path: &'a Path) -> anyhow::Result<&'a str> {
    let shown = path.display();
    let text = path
        .to_str()
        .with_context(|| format!("{option}: {shown} isn't UTF-8"))?;
    ensure!(
        path.is_absolute() && !path.components().any(|part| part == Component::ParentDir),
        "{option}: {shown} isn't an absolute path without `..`"
    );
    // XML 1.0 excludes U+FFFE and U+FFFF, too
    ensure!(
        !text
            .chars()
            .any(|c| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}')),
        "{option}: {shown:?} has control characters"
    );
    Ok(text)
}

/// The name of an account, in a form that a line of newsyslog.conf can hold.
fn account_name<'a>(option: &str, name: &'a str) -> anyhow::Result<&'a str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    ensure!(
        !name.is_empty() && !name.starts_with('-') && name.bytes().all(fits),
        "{option}: `{name}` isn't the name of an account"
    );
    Ok(name)
}

/// The user that runs tart.
#[derive(Debug)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl Account {
    async fn of(name: &str) -> anyhow::Result<Self> {
        let number = async |flag: &str| -> anyhow::Result<u32> {
            let output = run(Path::new("/usr/bin/id"), &[flag, name]).await?;
            ensure!(
                output.status.success(),
                "there is no user `{name}` on this host: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
            let text = String::from_utf8_lossy(&output.stdout);
            text.trim()
                .parse()
                .with_context(|| format!("`id {flag} {name}` printed `{}`", text.trim()))
        };
        let (uid, gid) = (number("-u").await?, number("-g").await?);
        ensure!(
            uid != 0,
            "--user root: tart and its VMs don't run as root; name the user that runs tart"
        );
        Ok(Self {
            name: name.to_owned(),
            uid,
            gid,
        })
    }
}

fn check_binary(binary: &Path) -> anyhow::Result<()> {
    let shown = binary.display();
    let found = std::fs::metadata(binary)
        .with_context(|| format!("looking at the agent's program {shown} (--binary)"))?;
    ensure!(
        found.is_file() && found.mode() & 0o001 != 0,
        "--binary: {shown} isn't a program that every user may run"
    );
    ensure!(
        found.mode() & 0o002 == 0,
        "--binary: every user may overwrite {shown}, which starts at boot: chmod o-w it"
    );
    Ok(())
}

/// Checks that tart's home exists, belongs to the user, and isn't below the mount point of an unmounted volume.
fn check_tart_home(home: &Path, account: &Account, volumes: &Path) -> anyhow::Result<()> {
    let shown = home.display();
    if let Ok(inside) = home.strip_prefix(volumes)
        && let Some(volume) = inside.components().next()
    {
        let volume = volumes.join(volume);
        // an unmounted volume's path may exist as a directory on the system disk, which images would fill
        let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev());
        let mounted = device(&volume)
            .with_context(|| format!("--tart-home: volume {} isn't there", volume.display()))?;
        ensure!(
            mounted != device(volumes).context("looking at the volumes")?,
            "--tart-home: {} is a directory, no mounted volume",
            volume.display()
        );
    }
    let found = match std::fs::metadata(home) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
            "--tart-home: {shown} doesn't exist; run `tart list` once as {}, or name another",
            account.name
        ),
        Err(error) => return Err(error).with_context(|| format!("looking at {shown}")),
    };
    ensure!(found.is_dir(), "--tart-home: {shown} isn't a directory");
    ensure!(
        found.uid() == account.uid,
        "--tart-home: {shown} belongs to user {}, not to {}",
        found.uid(),
        account.name
    );
    Ok(())
}

/// The commands of launchd that this job needs.
struct Launchd {
    launchctl: PathBuf,
}

impl Launchd {
    fn new(launchctl: impl Into<PathBuf>) -> Self {
        Self {
            launchctl: launchctl.into(),
        }
    }

    /// Makes launchd run the job as the plist says. A running job with an unchanged plist is left alone.
    async fn load(&self, plist: &Path, changed: bool) -> anyhow::Result<()> {
        if self.loaded().await? {
            if !changed {
                return Ok(());
            }
            self.unload().await?;
        }
        // a job that somebody disabled can't be bootstrapped
        self.must(&["enable", &target()]).await?;
        let plist = plist.to_string_lossy();
        self.must(&["bootstrap", "system", &plist]).await
    }

    async fn unload(&self) -> anyhow::Result<()> {
        if !self.loaded().await? {
            return Ok(());
        }
        // The status of `bootout` says little: `operation in progress` counts as a failure. What counts is that the job
        // goes.
        let output = self.ask(&["bootout", &target()]).await?;
        let since = Instant::now();
        while self.loaded().await? {
            ensure!(
                since.elapsed() < GONE_TIMEOUT,
                "launchd still has {LABEL} after {} s: {}",
                GONE_TIMEOUT.as_secs(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
            tokio::time::sleep(GONE_POLL).await;
        }
        Ok(())
    }

    async fn loaded(&self) -> anyhow::Result<bool> {
        Ok(self.ask(&["print", &target()]).await?.status.success())
    }

    async fn must(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let output = self.ask(arguments).await?;
        ensure!(
            output.status.success(),
            "`launchctl {}` failed ({}): {}; `log show --last 5m --predicate 'process == \"launchd\"'` may say more",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(())
    }

    async fn ask(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        run(&self.launchctl, arguments).await
    }
}

fn target() -> String {
    format!("system/{LABEL}")
}

async fn run(program: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    let shown = format!("{} {}", program.display(), arguments.join(" "));
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(COMMAND_TIMEOUT, output).await {
        Ok(output) => output.with_context(|| format!("running `{shown}`")),
        Err(_) => {
            warn!(command = shown, "ended: no answer");
            bail!("`{shown}` didn't answer in {} s", COMMAND_TIMEOUT.as_secs())
        }
    }
}

#[cfg(test)]
mod tests;
