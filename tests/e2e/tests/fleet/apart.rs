//! A host whose own system sends nothing to any peer, as macOS does where Local Network privacy keeps the agent from
//! the network: in a network namespace with routes that answer `EHOSTUNREACH`, and a way to the coordinator.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    env,
    net::IpAddr,
    process::{Command, Stdio},
    thread,
};

use e2e::{
    cluster::{Options, Place, said, wait_until},
    image::ImageSpec,
    registry,
    rig::Rig,
    site::{self, PATIENCE},
};
use serde_json::json;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

/// Set in the test's own second process, which runs in the network.
const INSIDE: &str = "PARBAKE_TEST_INSIDE";

/// A network of two namespaces, which go with their last process. The names of namespaces lie on a volume of this one.
/// `apart` has no way to the two peers, and one to the coordinator and the registry.
const NETWORK: &str = "
mount -t tmpfs parbake-test /run
ip link set lo up
ip netns add apart
ip link add near type veth peer name far netns apart
for host in 1 3 4; do ip addr add 10.77.0.$host/24 dev near; done
ip link set near up
ip -n apart link set lo up
ip -n apart addr add 10.77.0.2/24 dev far
ip -n apart link set far up
for host in 3 4; do ip -n apart route add unreachable 10.77.0.$host/32; done
exec \"$@\"
";

/// The peers' places in it.
const PEERS: [u8; 2] = [3, 4];

/// What the host says; the cures on macOS stand in the agent's own test, since a program knows only its own system.
const WORDS: &str = "nothing can be sent to any of the 2 peers that were tried (No route to host (os error 113)), although \
                     the coordinator is reached; look at this host's routes and firewall";

fn ip(host: u8) -> IpAddr {
    [10, 77, 0, host].into()
}

fn near(host: u8) -> Place {
    Place {
        ip: ip(host),
        ..Place::default()
    }
}

#[test]
#[cfg_attr(
    not(network),
    ignore = "needs root, unshare of util-linux and ip of iproute2, to make a network"
)]
fn a_host_that_reaches_the_coordinator_and_no_peer_says_so_until_the_way_is_there() {
    if env::var_os(INSIDE).is_none() {
        let name = thread::current().name().unwrap().to_owned();
        let inside = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-ec", NETWORK, "sh"])
            .arg(env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture"])
            .env(INSIDE, "1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = said(&inside);
        assert!(inside.status.success(), "{said}");
        return assert!(said.contains("1 passed"), "{said}");
    }
    let spec = ImageSpec::incompressible(12 << 20, 2 << 20, 1);
    let options = registry::Options {
        listen: (ip(1), 0).into(),
        rate_bytes_per_s: Some(2 << 20),
        ..registry::Options::default()
    };
    let rig = Rig::new(&spec, options).unwrap();
    let apart = Place {
        ip: ip(2),
        prefix: ["ip", "netns", "exec", "apart"].map(str::to_owned).into(),
    };
    let cluster = site::start(Options {
        hosts: [vec![apart], PEERS.map(near).into()].concat(),
        coordinator: near(1),
        ..rig.site.options(DEMO, 0)
    })
    .unwrap();
    cluster.stage(&[&rig.reference]).unwrap();
    let why = || said(&cluster.parbake(&["why", "mac-000"]).unwrap());
    let told = || cluster.status(&rig.reference).unwrap()["hosts"][0].clone();
    // what this host was to get from its peers doesn't come; the registry is asked for it only after a while
    let says_so = || {
        let (why, told) = (why(), told());
        why.contains("no_route") && why.contains(WORDS) && told["reason"] == "no_route"
    };
    assert!(wait_until(PATIENCE, says_so), "{}\n{}", why(), told());
    let told = told();
    assert_eq!(
        (&told["connected"], &told["bytes"]["peers"]),
        (&json!(true), &json!(0))
    );
    for peer in ["mac-001", "mac-002"] {
        let why = said(&cluster.parbake(&["why", peer]).unwrap());
        assert!(!why.contains("no_route"), "{why}");
    }

    // by itself it goes on where the way is there
    for peer in PEERS {
        let mut way = Command::new("ip");
        way.args(["-n", "apart", "route", "del", "unreachable"]);
        assert!(way.arg(ip(peer).to_string()).status().unwrap().success());
    }
    rig.arrives(&cluster).unwrap();
    let next = rig.site.image(&ImageSpec { seed: 2, ..spec }).unwrap();
    let reference = rig.site.registry.hold("fleet/macos", "2", &next);
    cluster.stage(&[&reference]).unwrap();
    let next = next.digest.to_string();
    cluster.wait_present(&next, PATIENCE).unwrap();
    let from_peers = || cluster.status(&next).unwrap()["hosts"][0]["bytes"]["peers"].clone();
    assert!(wait_until(PATIENCE, || from_peers().as_u64() > Some(0)));
    assert!(!why().contains("no_route"));
}
