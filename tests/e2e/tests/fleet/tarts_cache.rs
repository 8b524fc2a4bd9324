//! What tart leaves in its cache: half of an image, a tag that leads nowhere, an image without its manifest.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use e2e::{cluster::wait_until, image::ImageSpec, rig::Rig, site::PATIENCE, tart_home};
use proto::Digest;

const DEMO: &str = env!("CARGO_BIN_EXE_demo");

/// Where tart keeps the image itself, and the link that its tag is.
fn places(home: &Path, rig: &Rig) -> (PathBuf, PathBuf) {
    let link = tart_home::directory(home, &rig.reference);
    (link.with_file_name(rig.image.digest.to_string()), link)
}

#[test]
fn half_a_record_and_a_tag_that_leads_nowhere_are_repaired_and_a_lost_manifest_costs_nothing() {
    let rig = Rig::paced(&ImageSpec::plain(8, 2), None).unwrap();
    let mut cluster = rig.site.fleet(DEMO, 1, "", "").unwrap();
    let home = cluster.agents()[0].tart_home();
    let (record, link) = places(&home, &rig);
    // tart lists it, and can neither clone nor pull it
    fs::create_dir_all(&record).unwrap();
    for (part, bytes) in [
        ("config.json", &rig.image.config),
        ("nvram.bin", &rig.image.nvram),
        ("manifest.json", &rig.image.manifest),
    ] {
        fs::write(record.join(part), bytes).unwrap();
    }
    let nowhere = record.with_file_name(Digest::of(b"pruned").to_string());
    symlink(nowhere, &link).unwrap();
    cluster.stage(&[&rig.reference, "--wait"]).unwrap();
    rig.arrives(&cluster).unwrap();

    // the manifest of the image, which is our own, goes: that is no reason to fetch anything
    let served = rig.site.served();
    assert!(served <= rig.image.blob_bytes());
    fs::remove_file(record.join("manifest.json")).unwrap();
    cluster.kill_agent(0).unwrap();
    cluster.start_agent(0).unwrap();
    let present = || {
        let status = cluster.agent_status(0).unwrap_or_default();
        status["images"][0]["state"] == "present"
    };
    assert!(wait_until(PATIENCE, present));
    cluster.stage(&[&rig.reference, "--wait"]).unwrap();
    assert_eq!(rig.site.served(), served);

    // half of it goes: it is absent, and then repaired
    fs::remove_file(record.join("disk.img")).unwrap();
    assert!(wait_until(PATIENCE, || !present()));
    assert!(wait_until(PATIENCE, present));
    assert_eq!(rig.image.compare(&record.join("disk.img")).unwrap(), None);
}
