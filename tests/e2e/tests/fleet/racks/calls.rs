//! Calls to the gate that come late, twice, or whose answers are lost; and a `gate run` that is ended, or that nobody
//! listens to.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use rustix::{
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    process::{Pid, Signal, kill_process},
};

use super::*;

/// The numbers of three callers.
const ONE: &str = "00000000000000a1";
const TWO: &str = "00000000000000b2";
const THREE: &str = "00000000000000c3";

/// The hosts that have a place in group `ci`, with their numbers.
fn places(cluster: &Cluster) -> BTreeMap<String, String> {
    let list = json(&gate(cluster, &["list", "--json"]));
    let groups = list["groups"].as_array().unwrap().iter();
    let places = groups.flat_map(|group| group["places"].as_array().unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    places
        .map(|place| (text(&place["host"]), text(&place["number"])))
        .collect()
}

fn host(cluster: &Cluster, number: usize) -> String {
    cluster.agents()[number].host.clone()
}

/// `gate wait` in group `ci`, under a cap of one.
fn wait<'a>(host: &'a str, image: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let words = ["wait", host, image, "--group", "ci", "--at-most", "1"];
    [&words, more].concat()
}

fn done(cluster: &Cluster, host: &str, place: &str) -> (i32, String) {
    let done = gate(cluster, &["done", host, "--group", "ci", "--place", place]);
    (code(&done), said(&done))
}

#[track_caller]
fn expect((code, said): (i32, String), expected: i32, words: &str) {
    assert_eq!(code, expected, "{said}");
    assert!(said.contains(words), "{said}");
}

#[test]
fn calls_that_come_late_or_twice_touch_no_place_of_another_caller() {
    let (rig, mut cluster) = staged(1);
    let (image, host) = (rig.reference.clone(), host(&cluster, 0));
    let only = |number: &str| BTreeMap::from([(host.clone(), number.to_owned())]);
    let first = gate(&cluster, &wait(&host, &image, &["--place", ONE]));
    assert_eq!(code(&first), 0, "{}", said(&first));
    assert!(said(&first).contains(&format!("its place is {ONE}")));

    // two callers on one host: the second one hears whose it is, and waits until that one is done
    let full = gate(&cluster, &wait(&host, &image, &["--timeout", "0"]));
    let back = format!("parbake gate done {host} --group ci --place {ONE}");
    expect((code(&full), said(&full)), 1, &back);
    assert!(said(&full).contains("place_taken"), "{}", said(&full));
    let touched = cluster.directory().join("touched");
    let touch = touched.to_str().unwrap();
    let words = [
        "run",
        &image,
        "--group",
        "ci",
        "--at-most",
        "1",
        "--",
        "touch",
        touch,
    ];
    let running = Waiting::start(&cluster, "running", &words);
    running.says("place_taken");
    assert!(!touched.exists());
    expect(done(&cluster, &host, ONE), 0, "gave its place back");
    assert_eq!(running.ends(), 0);
    assert!(touched.exists());
    assert_eq!(places(&cluster), BTreeMap::new());

    let second = gate(&cluster, &wait(&host, &image, &["--place", TWO]));
    assert_eq!(code(&second), 0, "{}", said(&second));
    // late, twice, after the coordinator died: the first caller's call touches nothing
    for _ in 0..2 {
        for _ in 0..2 {
            expect(done(&cluster, &host, ONE), 0, "was given back before");
            expect(
                done(&cluster, &host, ONE),
                0,
                "is another caller's, and stays",
            );
        }
        assert_eq!(places(&cluster), only(TWO));
        cluster.kill_coordinator().unwrap();
        cluster.start_coordinator().unwrap();
    }
    expect(
        done(&cluster, &host, THREE),
        1,
        "nothing is known of this place",
    );
    assert_eq!(places(&cluster), only(TWO));
    // a place that was given back isn't taken again
    let ready = || {
        code(&gate(
            &cluster,
            &wait(&host, &image, &["--place", TWO, "--timeout", "0"]),
        )) == 0
    };
    assert!(wait_until(PATIENCE, ready), "it has its own place again");
    let late = gate(&cluster, &wait(&host, &image, &["--place", ONE]));
    expect((code(&late), said(&late)), 2, "place_over");
    // done after the coordinator died, and the repeat of it
    cluster.kill_coordinator().unwrap();
    cluster.start_coordinator().unwrap();
    expect(done(&cluster, &host, TWO), 0, "gave its place back");
    expect(done(&cluster, &host, TWO), 0, "was given back before");
}

#[test]
fn a_caller_hears_that_its_place_ended_by_an_operator_or_by_its_time() {
    let (rig, cluster) = staged(1);
    let (image, host) = (rig.reference.clone(), host(&cluster, 0));
    let over = || places(&cluster).is_empty();
    let brief = gate(
        &cluster,
        &wait(&host, &image, &["--place", ONE, "--for", "1"]),
    );
    assert_eq!(code(&brief), 0, "{}", said(&brief));
    assert!(wait_until(PATIENCE, over));
    expect(done(&cluster, &host, ONE), 1, "time was over");
    let taken = gate(&cluster, &wait(&host, &image, &["--place", TWO]));
    assert_eq!(code(&taken), 0, "{}", said(&taken));
    let operator = gate(&cluster, &["done", &host]);
    expect((code(&operator), said(&operator)), 0, "gave its place back");
    expect(
        done(&cluster, &host, TWO),
        1,
        "an operator gave this place back",
    );
}

/// The way to the coordinator, on which answers get lost.
struct Lossy {
    address: SocketAddr,
    /// So many answers come, and the next ones are lost.
    come: Arc<AtomicUsize>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Lossy {
    fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            come: Arc::new(AtomicUsize::new(usize::MAX)),
            open: Arc::default(),
        };
        let (come, open) = (this.come.clone(), this.open.clone());
        // ends with the test's process
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(to)) else {
                    continue;
                };
                let ends = [&client, &server].map(|end| end.try_clone().unwrap());
                open.lock().unwrap().extend(ends);
                let more = |left: usize| left.checked_sub(1);
                let comes = come.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
                carry(client, server, comes.is_err());
            }
        });
        this
    }

    fn come(&self, answers: usize) {
        self.come.store(answers, Ordering::SeqCst);
    }

    fn cut(&self) {
        for end in self.open.lock().unwrap().drain(..) {
            drop(end.shutdown(Shutdown::Both));
        }
    }

    /// A `gate` command that asks on this way.
    fn asks(&self, cluster: &Cluster, name: &str, arguments: &[&str]) -> Waiting {
        let story = cluster.directory().join(name);
        let words: Vec<&str> = ["gate"].iter().chain(arguments).copied().collect();
        let mut command = cluster.operator(&words);
        let child = command
            .env("PARBAKE_API", format!("https://{}", self.address))
            .stdout(Stdio::null())
            .stderr(fs::File::create(&story).unwrap())
            .spawn()
            .unwrap();
        Waiting { child, story }
    }
}

/// Carries bytes both ways. Where it loses answers, nothing of the server comes once the client has spoken a second
/// time: its first words begin the handshake, and the request is among the next ones.
fn carry(mut client: TcpStream, mut server: TcpStream, loses: bool) {
    let (mut to_server, mut to_client) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    let asked = Arc::new(AtomicBool::new(false));
    let answers = asked.clone();
    thread::spawn(move || {
        let (mut bytes, mut spoke) = (vec![0; 16 << 10], 0);
        while let Ok(read @ 1..) = client.read(&mut bytes) {
            spoke += 1;
            asked.fetch_or(spoke > 1, Ordering::SeqCst);
            if to_server.write_all(&bytes[..read]).is_err() {
                break;
            }
        }
        drop(to_server.shutdown(Shutdown::Both));
    });
    thread::spawn(move || {
        let mut bytes = vec![0; 16 << 10];
        while let Ok(read @ 1..) = server.read(&mut bytes) {
            let lost = loses && answers.load(Ordering::SeqCst);
            if !lost && to_client.write_all(&bytes[..read]).is_err() {
                break;
            }
        }
        if !loses {
            drop(to_client.shutdown(Shutdown::Both));
        }
    });
}

fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn a_lost_answer_leaves_no_place_that_nobody_knows_of() {
    let (rig, cluster) = staged(1);
    let (image, host) = (rig.reference.clone(), host(&cluster, 0));
    let way = Lossy::start(cluster.api());
    let taken = || !places(&cluster).is_empty();
    let free = || places(&cluster).is_empty();
    let lost_after = |answers: usize, name: &str, words: &[&str]| {
        way.come(answers);
        let waiting = way.asks(&cluster, name, words);
        assert!(wait_until(PATIENCE, taken));
        way.come(usize::MAX);
        waiting
    };
    let lost = |name: &str, words: &[&str]| lost_after(0, name, words);
    // it asks again, and gets its own place
    let waiting = lost("again", &wait(&host, &image, &["--place", ONE]));
    way.cut();
    assert_eq!(waiting.ends(), 0);
    assert_eq!(
        places(&cluster),
        BTreeMap::from([(host.clone(), ONE.to_owned())])
    );
    assert_eq!(done(&cluster, &host, ONE).0, 0);
    // its time is up before an answer comes
    let waiting = lost("late", &wait(&host, &image, &["--timeout", "0"]));
    way.cut();
    waiting.says("gave its place back in ci");
    assert_ne!(waiting.ends(), 0);
    assert!(free());
    // it is ended before an answer comes
    let waiting = lost("ended", &wait(&host, &image, &[]));
    signal(&waiting.child, Signal::TERM);
    waiting.says("gave its place back in ci");
    assert_eq!(waiting.ends(), 2);
    assert!(free());
    // whoever made the number keeps the place, and hears of it
    let waiting = lost("kept", &wait(&host, &image, &["--place", TWO]));
    signal(&waiting.child, Signal::TERM);
    let back = format!("parbake gate done {host} --group ci --place {TWO}");
    waiting.says(&back);
    assert_eq!(waiting.ends(), 2);
    assert_eq!(done(&cluster, &host, TWO).0, 0);
    // `gate run` is ended in the same manner: nothing ran, and no place is left
    let touched = cluster.directory().join("touched");
    let words = [
        "run",
        &image,
        "--group",
        "ci",
        "--at-most",
        "1",
        "--",
        "touch",
        touched.to_str().unwrap(),
    ];
    // its first question is about the image
    let running = lost_after(1, "run", &words);
    signal(&running.child, Signal::TERM);
    running.says("no more commands begin: interrupted");
    way.cut();
    assert_eq!(running.ends(), 1);
    assert!(free());
    assert!(!touched.exists());
}

#[test]
fn a_second_ctrl_c_or_a_terminal_that_goes_away_ends_commands_and_gives_their_places_back() {
    let (rig, cluster) = staged(2);
    let began = |name: &str| {
        (0..2).all(|number| {
            cluster
                .directory()
                .join(format!("{name}-{}", host(&cluster, number)))
                .exists()
        })
    };
    let ended = |name: &str| began(&format!("{name}-ended"));
    let start = |name: &str| {
        let at = cluster.directory().join(name);
        let script = format!(
            "trap 'touch {0}-ended-$PARBAKE_HOST; exit 3' TERM; touch {0}-$PARBAKE_HOST; sleep 600 & wait",
            at.display()
        );
        let words = [
            "run",
            &rig.reference,
            "--group",
            "ci",
            "--at-most",
            "2",
            "--",
            "sh",
            "-c",
            &script,
        ];
        let running = Waiting::start(&cluster, &format!("{name}.story"), &words);
        assert!(wait_until(PATIENCE, || began(name)));
        assert_eq!(places(&cluster).len(), 2);
        running
    };
    let running = start("interrupted");
    signal(&running.child, Signal::INT);
    running.says("2 commands run, and are waited for; press Ctrl-C again to end them");
    assert!(!ended("interrupted"));
    assert_eq!(places(&cluster).len(), 2);
    signal(&running.child, Signal::INT);
    running.says("2 commands are ended");
    assert_eq!(running.ends(), 1);
    assert!(ended("interrupted"));
    assert_eq!(places(&cluster), BTreeMap::new());

    for (name, with) in [("hangup", Signal::HUP), ("term", Signal::TERM)] {
        let running = start(name);
        signal(&running.child, with);
        running.says("2 commands are ended");
        assert_eq!(running.ends(), 1);
        assert!(ended(name));
        assert_eq!(places(&cluster), BTreeMap::new());
    }
}

/// A pipe into which nothing more fits.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = fcntl_getfl(writer.as_fd()).unwrap();
    fcntl_setfl(writer.as_fd(), flags | OFlags::NONBLOCK).unwrap();
    for size in [4_096, 1] {
        while writer.write(&vec![b'.'; size]).is_ok() {}
    }
    // who writes to it from here on waits
    fcntl_setfl(writer.as_fd(), flags).unwrap();
    (reader, writer)
}

#[test]
fn a_stderr_that_nobody_reads_holds_up_no_command_no_signal_and_no_place() {
    let (rig, cluster) = staged(2);
    let run = |more: &[&str], script: &str, stderr: std::io::PipeWriter| {
        let words = [
            "gate",
            "run",
            &rig.reference,
            "--group",
            "ci",
            "--at-most",
            "1",
            "--json",
        ];
        let words = [&words, more, &["--", "sh", "-c", script]].concat();
        let mut command = cluster.operator(&words);
        command.stdout(Stdio::piped()).stderr(stderr);
        command.spawn().unwrap()
    };
    let report = |child: Child| {
        let output = child.wait_with_output().unwrap();
        let report = json(&output);
        assert_eq!(report["output_lost"], true, "{report}");
        assert_eq!(places(&cluster), BTreeMap::new());
        report
    };
    let (_unread, full) = full_pipe();
    let all = report(run(&[], "echo said", full.try_clone().unwrap()));
    assert_eq!(all["hosts_done"], 2, "{all}");
    // a command that writes and writes waits, and its time goes on
    let hosts = host(&cluster, 0);
    let loud = ["--hosts", hosts.as_str(), "--command-timeout", "2"];
    let loud = report(run(&loud, "exec yes", full.try_clone().unwrap()));
    assert_eq!(loud["hosts"][0]["state"], "timed_out", "{loud}");
    // and whoever ends it is heard
    let child = run(&[], "sleep 600 & wait", full);
    assert!(wait_until(PATIENCE, || !places(&cluster).is_empty()));
    signal(&child, Signal::TERM);
    let ended = report(child);
    assert_eq!(ended["hosts_done"], 0, "{ended}");
}

#[test]
fn the_script_with_place_gives_back_its_own_place_however_its_command_ends() {
    let (rig, cluster) = staged(1);
    let (dir, host) = (cluster.directory(), host(&cluster, 0));
    program(
        &dir.join("parbake"),
        &format!("#!/bin/sh\nexec {DEMO} parbake \"$@\"\n"),
    );
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    let operator = cluster.operator(&[]);
    let with_place = |script: &str, work: &str| {
        let words = [&*host, &*rig.reference, "ci", "1", "sh", "-c", script];
        let mut command = std::process::Command::new(format!("{SCRIPTS}/with-place.sh"));
        for (name, value) in operator.get_envs() {
            command.env(name, value.unwrap());
        }
        command.env("PATH", &path).env("RACK_WORK", work);
        command.args(words).stdin(Stdio::null()).output().unwrap()
    };
    let list = dir.join("list");
    let script = format!(
        "parbake gate list > {0}; grep -q \"{host} has place $PARBAKE_PLACE\" {0}",
        list.display()
    );
    let well = with_place(&script, "600");
    assert_eq!(code(&well), 0, "{}", said(&well));
    assert!(
        said(&well).contains("gave its place back"),
        "{}",
        said(&well)
    );
    let badly = with_place("exit 7", "600");
    assert_eq!(code(&badly), 7, "{}", said(&badly));
    assert_eq!(places(&cluster), BTreeMap::new());
    // another caller has the host when the script's time was over: that place stays, and the script says so
    let other = format!(
        "until parbake gate wait {host} {} --group ci --at-most 1 --place {TWO} --timeout 0; do sleep 0.1; done",
        rig.reference
    );
    let late = with_place(&other, "1");
    expect((code(&late), said(&late)), 1, "ended before its command");
    assert!(places(&cluster).contains_key(&host));
    assert_eq!(done(&cluster, &host, TWO).0, 0);
}
