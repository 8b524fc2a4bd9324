use clap::Parser as _;

use super::*;
use crate::{
    cli::{Cli, Command},
    tart::tests::program,
};

fn typed(arguments: &[&str]) -> (Install, Shared) {
    let fixed = ["parbake-agent", "install", "--user", "m1"];
    let cli = Cli::parse_from(fixed.iter().chain(arguments));
    let Command::Install(options) = cli.command else {
        panic!("not install")
    };
    (options, cli.shared)
}

fn layout(arguments: &[&str]) -> anyhow::Result<Layout> {
    let (options, shared) = typed(arguments);
    Layout::new(&options, &shared)
}

fn content<'a>(layout: &'a Layout, path: &str) -> &'a str {
    let entry = layout
        .entries
        .iter()
        .find(|entry| entry.path == Path::new(path))
        .unwrap();
    entry.content.as_deref().unwrap()
}

/// The line of the plist with a key's value.
fn of_key<'a>(plist: &'a str, key: &str) -> &'a str {
    let (_, after) = plist.split_once(&format!("<key>{key}</key>")).unwrap();
    after.trim_start().lines().next().unwrap()
}

#[test]
fn the_plist_has_user_home_and_tart_home() {
    let layout = layout(&["--binary", "/usr/local/bin/parbake-agent"]).unwrap();
    let plist = content(&layout, PLIST);
    assert_eq!(of_key(plist, "Label"), "<string>dev.parbake.agent</string>");
    assert_eq!(of_key(plist, "UserName"), "<string>m1</string>");
    assert_eq!(of_key(plist, "HOME"), "<string>/Users/m1</string>");
    assert_eq!(
        of_key(plist, "TART_HOME"),
        "<string>/Users/m1/.tart</string>"
    );
    assert_eq!(of_key(plist, "LowPriorityIO"), "<true/>");
    assert_eq!(of_key(plist, "KeepAlive"), "<true/>");
    assert!(plist.contains("<string>/usr/local/bin/parbake-agent</string>"));
    assert!(!layout.text().contains('@'), "{}", layout.text());
}

#[test]
fn paths_are_escaped_for_the_file_that_they_go_into() {
    let layout = layout(&[
        "--binary",
        "/a & b/<agent> \"it's\"",
        "--tart-home",
        "/x/\"q\"\\@USER@",
    ])
    .unwrap();
    let plist = content(&layout, PLIST);
    assert!(plist.contains("<string>/a &amp; b/&lt;agent&gt; &quot;it&apos;s&quot;</string>"));
    // a value that looks like a placeholder isn't replaced
    assert!(plist.contains("<string>/x/&quot;q&quot;\\@USER@</string>"));
    let config: toml::Table = content(&layout, CONFIG).parse().unwrap();
    assert_eq!(config["tart_home"].as_str(), Some("/x/\"q\"\\@USER@"));
}

#[test]
fn the_agent_understands_the_settings_that_install_writes() {
    let root = tempfile::tempdir().unwrap();
    layout(&["--binary", "/b"])
        .unwrap()
        .write(root.path(), None)
        .unwrap();
    let config = below(root.path(), Path::new(CONFIG));
    let cli = Cli::parse_from(["parbake-agent", "--config", config.to_str().unwrap(), "run"]);
    let config = crate::config::Config::load(&cli.shared, &crate::cli::Run::default()).unwrap();
    assert_eq!(config.state_dir, Path::new("/var/lib/parbake-agent"));
    assert_eq!(config.tart_binary, Path::new("/usr/local/bin/tart"));
}

#[test]
fn the_daemons_command_line_is_one_that_the_agent_takes() {
    let layout = layout(&["--binary", "/b"]).unwrap();
    let (_, after) = content(&layout, PLIST).split_once("<array>").unwrap();
    let (array, _) = after.split_once("</array>").unwrap();
    let arguments = array.lines().filter_map(|line| {
        line.trim()
            .strip_prefix("<string>")?
            .strip_suffix("</string>")
    });
    let cli = Cli::try_parse_from(arguments).unwrap();
    assert!(matches!(cli.command, Command::Run(_)));
    assert_eq!(cli.shared.config.as_deref(), Some(Path::new(CONFIG)));
    assert!(cli.shared.log_file.is_some());
}

#[test]
fn what_no_file_can_hold_is_refused_by_option() {
    for (arguments, word) in [
        (["--binary", "relative"], "--binary"),
        (["--binary", "/a/../b"], "--binary"),
        (["--tart-home", "/a\u{1}b"], "--tart-home"),
        (["--home", "/a\nb"], "--home"),
        (["--tart-binary", "/a\u{ffff}"], "--tart-binary"),
        (["--group", "st aff"], "--group"),
        (["--group", ""], "--group"),
    ] {
        let error = layout(&arguments).unwrap_err().to_string();
        assert!(error.contains(word), "{arguments:?}: {error}");
    }
    let (mut options, shared) = typed(&[]);
    options.user = "m1\n/etc/passwd root:wheel".into();
    assert!(Layout::new(&options, &shared).is_err());
    let elsewhere = layout(&["--config", "/elsewhere.toml"]).unwrap_err();
    assert!(elsewhere.to_string().contains(CONFIG), "{elsewhere}");
}

#[test]
fn a_second_install_changes_nothing_and_keeps_settings() {
    let root = tempfile::tempdir().unwrap();
    let first = layout(&["--binary", "/b"]).unwrap();
    assert!(first.write(root.path(), None).unwrap());
    assert!(!first.write(root.path(), None).unwrap());
    let config = below(root.path(), Path::new(CONFIG));
    std::fs::write(&config, "zone = 'mine'\n").unwrap();
    let second = layout(&["--binary", "/c"]).unwrap();
    assert!(second.write(root.path(), None).unwrap());
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "zone = 'mine'\n");
    let plist = std::fs::read_to_string(below(root.path(), Path::new(PLIST))).unwrap();
    assert!(plist.contains("<string>/c</string>"));
    // no temporary file is left beside the written one
    let beside = std::fs::read_dir(below(root.path(), Path::new("/Library/LaunchDaemons")))
        .unwrap()
        .count();
    assert_eq!(beside, 1);
}

#[test]
fn modes_are_set_also_on_what_was_there() {
    let root = tempfile::tempdir().unwrap();
    let state = below(root.path(), Path::new("/var/lib/parbake-agent"));
    std::fs::create_dir_all(&state).unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o777)).unwrap();
    // a temporary file that an interrupted install left
    let daemons = below(root.path(), Path::new("/Library/LaunchDaemons"));
    std::fs::create_dir_all(&daemons).unwrap();
    let beside = daemons.join(".dev.parbake.agent.plist.77.0.tmp");
    std::fs::write(&beside, "half").unwrap();
    let layout = layout(&["--binary", "/b"]).unwrap();
    layout.write(root.path(), None).unwrap();
    for entry in &layout.entries {
        let mode = std::fs::metadata(below(root.path(), &entry.path))
            .unwrap()
            .mode();
        assert_eq!(mode & 0o7777, entry.mode, "{}", entry.path.display());
    }
    assert!(!beside.exists());
}

#[test]
fn nobody_but_root_makes_files_where_root_rotates() {
    let layout = layout(&["--binary", "/b"]).unwrap();
    let entry = |path: &Path| layout.entries.iter().find(|entry| entry.path == path);
    let rotated = content(&layout, NEWSYSLOG).lines();
    let rotated: Vec<_> = rotated.filter(|line| line.starts_with('/')).collect();
    assert_eq!(rotated.len(), 2);
    for line in rotated {
        let mut fields = line.split_whitespace();
        let path = Path::new(fields.next().unwrap());
        assert_eq!(fields.next(), Some("m1:staff"));
        // the file is there from the first day, because only root can make it
        let file = entry(path).unwrap();
        assert!(file.users && file.keep && file.content.is_some());
        let directory = entry(path.parent().unwrap()).unwrap();
        assert!(!directory.users && directory.mode & 0o022 == 0, "{line}");
    }
    // what the user left in the directory while it belonged to the user
    let root = tempfile::tempdir().unwrap();
    let logs = below(root.path(), Path::new(LOG_DIR));
    std::fs::create_dir_all(&logs).unwrap();
    let (secret, other) = (root.path().join("secret"), root.path().join("other"));
    std::fs::write(&secret, "root's").unwrap();
    std::fs::write(&other, "root's").unwrap();
    std::os::unix::fs::symlink(&secret, logs.join("agent.log")).unwrap();
    std::fs::hard_link(&other, logs.join("agent.log.0.bz2")).unwrap();
    std::fs::write(logs.join("agent.err"), "kept\n").unwrap();
    // only root can give a file to another user
    let root_here = rustix::process::geteuid().is_root();
    let account = root_here.then(|| Account {
        name: "m1".into(),
        uid: 501,
        gid: 20,
    });
    if let Some(account) = &account {
        std::os::unix::fs::chown(&logs, Some(account.uid), None).unwrap();
    }
    layout.write(root.path(), account.as_ref()).unwrap();
    if account.is_some() {
        let owner = |path: &Path| std::fs::symlink_metadata(path).unwrap().uid();
        assert_eq!(owner(&logs), 0);
        assert_eq!(owner(&logs.join("agent.log")), 501);
        assert_eq!(owner(&logs.join("agent.err")), 501);
    }
    let text = |path: &Path| std::fs::read_to_string(path).unwrap();
    assert_eq!(
        (text(&secret).as_str(), text(&other).as_str()),
        ("root's", "root's")
    );
    assert_eq!(std::fs::metadata(&other).unwrap().nlink(), 1);
    let log = std::fs::symlink_metadata(logs.join("agent.log")).unwrap();
    assert!(log.is_file() && log.len() == 0);
    assert_eq!(text(&logs.join("agent.err")), "kept\n");
    assert!(!logs.join("agent.log.0.bz2").exists());
}

#[tokio::test]
async fn uninstall_removes_the_job_and_leaves_the_rest() {
    let root = tempfile::tempdir().unwrap();
    let layout = layout(&["--binary", "/b"]).unwrap();
    layout.write(root.path(), None).unwrap();
    let options = Uninstall {
        root: Some(root.path().into()),
    };
    assert!(uninstall(&options).await.unwrap());
    assert!(
        uninstall(&options).await.unwrap(),
        "twice is as good as once"
    );
    for entry in &layout.entries {
        let stays = entry.path != Path::new(PLIST) && entry.path != Path::new(NEWSYSLOG);
        let path = below(root.path(), &entry.path);
        assert_eq!(path.exists(), stays, "{}", path.display());
    }
}

#[cfg(not(target_vendor = "apple"))]
#[tokio::test]
async fn without_launchd_only_print_and_root_work() {
    let (options, shared) = typed(&["--binary", "/b"]);
    let error = install(&options, &shared).await.unwrap_err().to_string();
    assert!(error.contains("--print"), "{error}");
    let error = uninstall(&Uninstall { root: None }).await.unwrap_err();
    assert!(error.to_string().contains("--root"), "{error}");
}

#[test]
fn a_program_that_others_may_change_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("agent");
    assert!(check_binary(&program).is_err());
    std::fs::write(&program, "").unwrap();
    for (mode, fits) in [
        (0o755, true),
        (0o644, false),
        (0o700, false),
        (0o757, false),
    ] {
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(check_binary(&program).is_ok(), fits, "{mode:o}");
    }
    assert!(check_binary(directory.path()).is_err());
}

#[test]
fn tarts_home_has_to_be_the_users_on_a_mounted_volume() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("Images/tart");
    let uid = std::fs::metadata(directory.path()).unwrap().uid();
    let account = |uid| Account {
        name: "m1".into(),
        uid,
        gid: 20,
    };
    let elsewhere = Path::new("/Volumes");
    let missing = check_tart_home(&home, &account(uid), elsewhere).unwrap_err();
    assert!(missing.to_string().contains("tart list"), "{missing}");
    std::fs::create_dir_all(&home).unwrap();
    check_tart_home(&home, &account(uid), elsewhere).unwrap();
    let others = check_tart_home(&home, &account(uid + 1), elsewhere).unwrap_err();
    assert!(others.to_string().contains("not to m1"), "{others}");
    // `Images` is on the same disk as the directory of volumes, so no volume is mounted there
    let unmounted = check_tart_home(&home, &account(uid), directory.path()).unwrap_err();
    assert!(
        unmounted.to_string().contains("no mounted volume"),
        "{unmounted}"
    );
}

/// A launchctl that keeps a job in one file, and logs its commands in another.
fn launchd(directory: &Path, bootstrap: &str) -> Launchd {
    let script = directory.join("launchctl");
    let here = directory.display();
    let text = format!(
        "#!/bin/sh\necho \"$*\" >> '{here}/asked'\ncase $1 in\n\
         print) [ -e '{here}/job' ] ;;\n\
         bootout) rm '{here}/job'; exit 36 ;;\n\
         bootstrap) {bootstrap} ;;\nesac\n"
    );
    program(&script, &text);
    Launchd::new(script)
}

fn asked(directory: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(directory.join("asked")).unwrap();
    std::fs::remove_file(directory.join("asked")).unwrap();
    text.lines()
        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect()
}

#[tokio::test]
async fn launchd_loads_a_changed_job_anew_and_leaves_an_unchanged_one() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let launchd = launchd(here, &format!("touch '{}/job'", here.display()));
    launchd.load(Path::new(PLIST), true).await.unwrap();
    assert_eq!(asked(here), ["print", "enable", "bootstrap"]);
    launchd.load(Path::new(PLIST), false).await.unwrap();
    assert_eq!(asked(here), ["print"]);
    // bootout fails with 36 (operation in progress), and the job goes all the same
    launchd.load(Path::new(PLIST), true).await.unwrap();
    let anew = ["print", "print", "bootout", "print", "enable", "bootstrap"];
    assert_eq!(asked(here), anew);
    launchd.unload().await.unwrap();
    launchd.unload().await.unwrap();
    assert_eq!(asked(here), ["print", "bootout", "print", "print"]);
}

#[tokio::test]
async fn what_launchd_says_is_passed_on() {
    let directory = tempfile::tempdir().unwrap();
    let launchd = launchd(
        directory.path(),
        "echo 'Bootstrap failed: 5: Input/output error' >&2; exit 5",
    );
    let error = launchd.load(Path::new(PLIST), true).await.unwrap_err();
    assert!(error.to_string().contains("Input/output error"), "{error}");
}
