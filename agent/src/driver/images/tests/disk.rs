//! Tests of an image that is staged: chunks, installation, and what others do to the disk.

use super::*;
use crate::{driver::hosts::NoRoute, store::NoRoomError};

// ---- chunks ---------------------------------------------------------------------------------------------------------

#[test]
fn below_the_floor_nothing_more_is_taken_and_what_is_whole_goes_on() {
    let mut world = World::installing();
    world
        .images
        .stop_filling(world.now, &trouble(Reason::NoRoom));
    assert_eq!(world.drain(), [] as [&str; 0]);
    let mut world = World::filling();
    world
        .images
        .stop_filling(world.now, &trouble(Reason::NoRoom));
    let drained = world.drain();
    assert_eq!(drained, ["withdraw", "set aside", "failed", "report"]);
    assert_eq!(world.reason(), "no_room");
    assert!(!world.images.catalogue().is_filling());
}

#[test]
fn files_that_cant_be_written_stop_the_one_image_while_it_fills_and_none_that_is_installed() {
    let mut world = World::filling();
    world
        .images
        .unwritable(world.now, world.image, "read-only".into());
    assert_eq!(world.drain(), ["withdraw", "failed", "report"]);
    let mut world = World::present();
    world
        .images
        .unwritable(world.now, world.image, "read-only".into());
    assert_eq!(world.drain(), [] as [&str; 0]);
}

#[test]
fn a_layer_that_travelled_as_a_blob_is_decoded_while_other_contents_come() {
    let close = |world: &mut World, content: &Digest| {
        world.images.content_closed(world.now, world.image, content);
        world.drain()
    };
    let contents = World::new().layout.contents();
    let [config, nvram, blob] = contents.as_slice() else {
        panic!("{contents:?}")
    };
    let mut world = World::filling();
    assert_eq!(close(&mut world, &config.digest), [] as [&str; 0]);
    assert_eq!(close(&mut world, &blob.digest), ["decode"]);
    close(&mut world, &nvram.digest);
    assert!(world.found().has_all());
    // the last content: the installation, which begins now, decodes the blob
    let mut world = World::filling();
    for content in [config, nvram, blob] {
        assert!(!close(&mut world, &content.digest).contains(&"decode"));
    }
    assert!(world.found().has_all());
}

#[test]
fn a_content_that_rots_takes_presence_away_until_it_is_verified_again() {
    let mut world = World::present();
    let content = world.layout.contents()[1].digest;
    world.disk.0.closed.borrow_mut().remove(&content);
    world.images.content_opened(world.now, world.image, content);
    assert_eq!(world.drain(), ["report"]);
    assert_eq!(world.state(), StageState::Staging);
    assert_eq!(world.told().ready_references, [] as [&str; 0]);
    // a second one changes nothing that others rely on
    let second = world.layout.contents()[0].digest;
    world.images.content_opened(world.now, world.image, second);
    assert_eq!(world.drain(), [] as [&str; 0]);
    world.close_all();
    world.look(&[(NAME, Sight::Image(world.image))]);
    assert_eq!(world.state(), StageState::Present);
}

#[test]
fn trouble_of_the_registry_ends_when_something_comes_of_it_or_of_peers() {
    let mut world = World::filling();
    let images = [world.image];
    world.hear(
        &images,
        ImageNews::OriginTrouble(trouble(Reason::OriginTrouble)),
    );
    assert_eq!(world.reason(), "origin_trouble");
    world.hear(&images, ImageNews::OriginIsFine);
    assert_eq!(world.reason(), "");
    world.hear(
        &images,
        ImageNews::OriginTrouble(trouble(Reason::OriginFailed)),
    );
    world.hear(&images, ImageNews::FromOrigin(5));
    assert_eq!((world.reason(), world.told().origin_bytes), ("", 5));
    // a trouble that isn't the registry's stays
    world.hear(&images, ImageNews::OriginTrouble(trouble(Reason::NoRoom)));
    world.hear(&images, ImageNews::OriginIsFine);
    assert_eq!(world.reason(), "no_room");
}

#[test]
fn bytes_of_a_shared_content_are_held_by_all_images_and_moved_for_the_first() {
    let mut world = World::filling();
    let other = Digest::of(b"an image that is gone");
    world.hear(&[other, world.image], ImageNews::Gained(10));
    world.hear(&[other, world.image], ImageNews::FromPeers(10));
    world.hear(&[world.image, other], ImageNews::FromPeers(7));
    world.hear(&[world.image], ImageNews::Uploaded(3));
    world.hear(&[], ImageNews::Uploaded(3));
    world.hear(&[world.image], ImageNews::Lost(4));
    let told = world.told();
    assert_eq!(
        (told.held_bytes, told.peer_bytes, told.upload_bytes),
        (6, 7, 3)
    );
    // never below nothing
    world.hear(&[world.image], ImageNews::Lost(40));
    assert_eq!(world.told().held_bytes, 0);
}

#[test]
fn the_registry_is_asked_by_the_order_that_the_lease_names() {
    let world = World::filling();
    let other = Digest::of(b"another");
    let found = world
        .images
        .catalogue()
        .source(None, &[other, world.image])
        .unwrap();
    assert_eq!((found.image, found.reference.as_str()), (world.image, NAME));
    let leased = world
        .images
        .catalogue()
        .source(Some(world.image), &[world.image]);
    assert_eq!(leased, Some(found.clone()));
    // a lease of an image that the content isn't part of counts for nothing
    let leased = world.images.catalogue().source(Some(world.image), &[other]);
    assert_eq!(leased, None);
}

#[test]
fn the_blobs_of_images_under_way_are_in_use_and_those_of_present_ones_arent() {
    assert_eq!(World::ordered().images.catalogue().blobs_in_use().len(), 3);
    assert_eq!(World::filling().images.catalogue().blobs_in_use().len(), 3);
    assert_eq!(
        World::installing().images.catalogue().blobs_in_use().len(),
        3
    );
    assert_eq!(World::present().images.catalogue().blobs_in_use().len(), 0);
}

// ---- installing -----------------------------------------------------------------------------------------------------

#[test]
fn tart_that_is_busy_is_waited_for_half_a_second_and_is_no_failure() {
    let mut world = World::installing();
    let busy = LockError::Busy {
        path: PathBuf::from("/tart"),
        waited: Duration::from_secs(1),
    };
    assert_eq!(
        world.link(Err(InstallError::Busy(busy)), Ok(())),
        ["report"]
    );
    assert_eq!(
        (world.state(), world.reason()),
        (StageState::Installing, "tart_busy")
    );
    world.look(&[]);
    assert_eq!(world.images.reconciler().due(), None);
    assert_eq!(world.jobs(), [] as [&str; 0]);
    // the loop wakes when the pause is over, and not with the next look
    assert_eq!(
        world.images.reconciler().due(),
        Some(world.now + BUSY_PAUSE)
    );
    world.wait(BUSY_PAUSE);
    assert_eq!(world.jobs(), ["install"]);
}

#[test]
fn a_golden_that_cant_be_made_fails_the_try_and_leaves_the_stage_in_the_swarm() {
    let mut world = World::installing();
    world.disk.0.installed.set(true);
    let effects = world.link(Ok(()), Err(trouble(Reason::GoldenFailed)));
    assert_eq!(effects, ["failed", "report"]);
    assert_eq!(
        (world.state(), world.reason()),
        (StageState::Failed, "golden_failed")
    );
    world.look(&[]);
    assert_eq!(world.jobs(), [] as [&str; 0]);
    world.wait(Duration::from_secs(5));
    assert_eq!(world.jobs(), ["install"]);
    assert_eq!(world.state(), StageState::Installing);
}

#[test]
fn presence_is_withdrawn_with_the_reason_while_tart_is_too_old_and_comes_back_with_a_look() {
    let refused = (StageState::Failed, "needs_newer_tart");
    let mut world = World::present();
    world.look_unseen();
    assert_eq!(world.jobs(), ["install"]);
    world.link(Ok(()), Err(trouble(Reason::NeedsNewerTart)));
    for _ in 0..2 {
        assert_eq!((world.state(), world.reason()), refused);
        world.look_unseen();
    }
    world.look(&[(NAME, Sight::Image(world.image))]);
    assert_eq!((world.state(), world.reason()), (StageState::Present, ""));
}

#[test]
fn what_nobody_wants_stays_while_tart_is_too_old_to_see_it() {
    let mut world = World::present();
    world.images.cancel(world.now, world.image);
    world.drain();
    world.jobs();
    world.images.recorded(world.now, world.image, Ok(()));
    world.look(&[(NAME, Sight::Image(world.image))]);
    for _ in 0..2 {
        assert!(!world.look_unseen().contains(&"withdraw"));
        assert_eq!(
            (world.state(), world.reason()),
            (StageState::Failed, "needs_newer_tart")
        );
        assert!(world.told().ready_references.is_empty());
        assert_eq!(world.jobs(), [] as [&str; 0]);
    }
    world.look(&[(NAME, Sight::Image(world.image))]);
    assert_eq!((world.state(), world.reason()), (StageState::Present, ""));
    // the newer tart sees that its name is lost
    world.look_unseen();
    world.look(&[]);
    assert_eq!(
        (world.state(), world.reason()),
        (StageState::Gone, "superseded")
    );
}

#[test]
fn goldens_are_told_of() {
    let mut world = World::installing();
    world.images.goldens_made(world.image, false);
    assert!(!world.told().golden);
    world.images.goldens_made(world.image, true);
    world.images.goldens_made(world.image, false);
    assert!(world.told().golden);
}

#[test]
fn an_install_that_finds_a_content_incomplete_begins_anew_with_what_is_here() {
    let mut world = World::installing();
    let content = world.layout.contents()[0].digest;
    let incomplete = Err(InstallError::Incomplete(content));
    assert_eq!(world.link(incomplete, Ok(())), ["withdraw"]);
    assert_eq!(world.jobs(), ["begin"]);
}

#[test]
fn an_install_of_a_stage_of_before_changes_nothing() {
    let mut world = World::installing();
    let disk = Disk::default();
    let error = Err(InstallError::Gone);
    world
        .images
        .linked(world.now, world.image, &disk, error, Ok(()));
    assert_eq!(world.drain(), [] as [&str; 0]);
    assert_eq!(
        (world.state(), world.reason()),
        (StageState::Installing, "")
    );
}

// ---- what others do to the disk -------------------------------------------------------------------------------------

#[test]
fn files_that_are_removed_amid_staging_are_staged_anew_at_once_and_then_after_a_pause() {
    let mut world = World::filling();
    world.disk.0.gone.set(true);
    world
        .images
        .removed(world.now, world.image, Reason::Removed);
    assert_eq!(world.drain(), ["withdraw", "report"]);
    assert_eq!(world.state(), StageState::Queued);
    world.disk = Disk::default();
    assert_eq!(world.jobs(), ["begin"]);
    world.begun();
    world.disk.0.gone.set(true);
    world
        .images
        .removed(world.now, world.image, Reason::Removed);
    assert_eq!(world.drain(), ["withdraw", "failed", "report"]);
    assert_eq!(
        (world.state(), world.reason()),
        (StageState::Failed, "removed")
    );
    assert_eq!(world.jobs(), [] as [&str; 0]);
    world.wait(Duration::from_secs(5));
    assert_eq!(world.jobs(), ["begin"]);
}

#[test]
fn an_image_that_was_present_in_between_is_staged_anew_at_once_again() {
    let mut world = World::present();
    let content = world.layout.contents()[0].digest;
    world.images.content_opened(world.now, world.image, content);
    world.disk.0.gone.set(true);
    world
        .images
        .removed(world.now, world.image, Reason::Removed);
    assert_eq!(world.drain(), ["report", "withdraw", "report"]);
    assert_eq!(world.state(), StageState::Queued);
}

#[test]
fn a_present_image_that_is_removed_is_gone_and_comes_back_when_it_is_ordered() {
    let mut world = World::present();
    world.disk.0.gone.set(true);
    world
        .images
        .removed(world.now, world.image, Reason::Removed);
    assert_eq!(world.drain(), ["withdraw", "report"]);
    assert_eq!(
        (world.state(), world.reason()),
        (StageState::Gone, "removed")
    );
    assert_eq!(world.told().held_bytes, 0);
    assert_eq!(world.jobs(), [] as [&str; 0]);
    world.order(8);
    assert_eq!(world.jobs(), ["begin"]);
    assert_eq!(world.state(), StageState::Queued);
}

#[test]
fn an_image_that_was_retired_is_gone_unless_it_was_ordered_meanwhile() {
    let mut world = World::present();
    world.images.cancel(world.now, world.image);
    world.drain();
    world.disk.0.gone.set(true);
    let retire = |world: &mut World| {
        world
            .images
            .removed(world.now, world.image, Reason::Retired);
    };
    retire(&mut world);
    assert_eq!(world.drain(), ["withdraw", "report"]);
    assert_eq!(
        (world.state(), world.reason()),
        (StageState::Gone, "retired")
    );
    assert_eq!(world.jobs(), [] as [&str; 0]);

    let mut world = World::present();
    world.disk.0.gone.set(true);
    retire(&mut world);
    assert_eq!(world.drain(), ["withdraw", "report"]);
    assert_eq!(world.state(), StageState::Queued);
    world.disk = Disk::default();
    assert_eq!(world.jobs(), ["begin"]);
}

#[test]
fn a_word_about_files_of_a_stage_of_before_is_nothing() {
    let mut world = World::present();
    world
        .images
        .removed(world.now, world.image, Reason::Removed);
    assert_eq!(world.drain(), [] as [&str; 0]);
    assert_eq!(world.state(), StageState::Present);
}

#[test]
fn an_image_that_is_found_damaged_is_read_again_and_isnt_present_meanwhile() {
    let mut world = World::present();
    world.disk.0.doubted.set(true);
    world.disk.0.unread.set(true);
    world.images.doubted(world.now, world.image);
    assert_eq!(world.drain(), ["read again", "report"]);
    assert_eq!(
        (world.state(), world.reason()),
        (StageState::Staging, "checking")
    );
    world.disk.0.doubted.set(false);
    world.disk.0.unread.set(false);
    let disk = world.disk.clone();
    world.images.was_read(world.now, world.image, &disk, Ok(()));
    world.look(&[(NAME, Sight::Image(world.image))]);
    assert_eq!((world.state(), world.reason()), (StageState::Present, ""));
}

#[test]
fn a_doubt_about_an_image_that_isnt_taken_up_is_for_its_beginning() {
    let mut world = World::ordered();
    world.images.doubted(world.now, world.image);
    assert_eq!(world.drain(), [] as [&str; 0]);
}

#[test]
fn a_tag_that_somebody_moves_takes_presence_away_and_is_put_back() {
    let mut world = World::present();
    let other = Digest::of(b"another");
    assert_eq!(world.look(&[(NAME, Sight::Image(other))]), ["report"]);
    assert_eq!(world.state(), StageState::Installing);
    let told = world.told();
    assert_eq!(
        (told.reason.as_str(), told.ready_references.len()),
        ("tag_moved", 0)
    );
    assert_eq!(world.jobs(), ["install"]);
}

#[test]
fn a_tag_that_somebody_removes_is_told_by_name() {
    let mut world = World::present();
    world.look(&[]);
    let told = world.told();
    assert_eq!(told.reason, "name_lost");
    assert!(told.message.starts_with(NAME), "{}", told.message);
}

#[test]
fn the_age_of_presence_is_that_of_the_look_that_found_it() {
    let mut world = World::present();
    world.wait(Duration::from_secs(3));
    assert_eq!(world.told().presence_age_ms, 3_000);
    world.look(&[(NAME, Sight::Image(world.image))]);
    assert_eq!(world.told().presence_age_ms, 0);
}

#[test]
fn states_are_counted_for_metrics_with_those_that_nothing_is_in() {
    let counts = World::present().images.catalogue().count_states();
    assert_eq!(counts["present"], 1);
    assert_eq!(counts["staging"], 0);
    assert_eq!(counts.len(), 6);
}

// ---- what is told ---------------------------------------------------------------------------------------------------

#[test]
fn what_is_under_way_has_no_reason_and_what_stands_has_the_hosts_own() {
    let still = Some(swarm::Standstill {
        stall: swarm::Stall::Throttled,
        since: Duration::from_secs(65),
    });
    let mut world = World::filling();
    let reason =
        |world: &World, still| image_state::of(world.now, world.found(), still, None, None);
    assert_eq!(reason(&world, still).reason, "throttled");
    assert_eq!(reason(&world, still).still_ms, 65_000);
    let images = [world.image];
    world.hear(
        &images,
        ImageNews::OriginTrouble(trouble(Reason::OriginTrouble)),
    );
    // the registry fails one content, and others come
    assert_eq!(reason(&world, None).reason, "");
    assert_eq!(reason(&world, still).reason, "origin_trouble");
    world
        .images
        .stop_filling(world.now, &trouble(Reason::NoRoom));
    assert_eq!(reason(&world, None).reason, "no_room");
    assert_eq!(reason(&World::ordered(), None).reason, "preparing");
    assert_eq!(reason(&World::present(), None).reason, "");
}

#[test]
fn a_system_that_sends_to_no_peer_is_named_where_peers_are_missing_and_nowhere_else() {
    let world = World::filling();
    let told = |on_mac, stall: Option<swarm::Stall>| {
        let found = NoRoute {
            dialled: 3,
            cause: "No route to host (os error 65)".into(),
        };
        let apart = Trouble::no_route(&found, on_mac);
        let still = stall.map(|stall| swarm::Standstill {
            stall,
            since: Duration::from_secs(65),
        });
        image_state::of(world.now, world.found(), still, None, Some(&apart))
    };
    let on_mac = told(true, Some(swarm::Stall::NoPeers));
    assert_eq!(
        (on_mac.reason.as_str(), on_mac.still_ms),
        ("no_route", 65_000)
    );
    for part in ["3 peers", "os error 65", "LaunchDaemon", "Local Network"] {
        assert!(on_mac.message.contains(part), "{}", on_mac.message);
    }
    let elsewhere = told(false, Some(swarm::Stall::NoPeers));
    assert_eq!(elsewhere.reason, "no_route");
    assert!(
        elsewhere.message.contains("routes"),
        "{}",
        elsewhere.message
    );
    assert!(
        !elsewhere.message.contains("macOS"),
        "{}",
        elsewhere.message
    );

    assert_eq!(
        told(true, Some(swarm::Stall::Throttled)).reason,
        "throttled"
    );
    assert_eq!(told(true, None).reason, "", "chunks come");
}

// ---- room -----------------------------------------------------------------------------------------------------------

/// Another image, which is ordered beside that of the world.
const OTHER: &str = "r.test/b:1";

/// As many bytes are lacking as are needed: what is free is kept for others.
fn short(need_bytes: u64, reserved: &[(Digest, u64)]) -> NoRoomError {
    let reserved_bytes = reserved.iter().map(|(_, bytes)| bytes).sum();
    NoRoomError {
        need_bytes,
        reserved_bytes,
        free_bytes: reserved_bytes,
        kept_for: reserved.iter().copied().collect(),
        ..NoRoomError::default()
    }
}

/// As [`short`]; this other image has taken bytes of the volume.
fn short_beside(need_bytes: u64, reserved: &[(Digest, u64)], taken: (Digest, u64)) -> NoRoomError {
    NoRoomError {
        taken_by: [taken].into(),
        ..short(need_bytes, reserved)
    }
}

/// A world whose image fills, and another image that is ordered. `first`: the other one comes first.
fn beside_another(first: bool) -> (World, Digest) {
    let mut world = World::filling();
    let manifest = manifest("b");
    let other = Digest::of(&manifest);
    let order = StageOrder {
        references: vec![OTHER.into()],
        ..StageOrder::default()
    };
    let (now, image) = (world.now, world.image);
    world.images.order(now, other, order.into(), &manifest);
    let sequence = match first {
        true => vec![other, image],
        false => vec![image, other],
    };
    world.images.take_sequence(sequence);
    world.drain();
    assert_eq!(world.jobs(), ["begin"]);
    (world, other)
}

/// The other image's beginning finds no room.
fn find_no_room(world: &mut World, other: Digest, short: &NoRoomError) -> Vec<&'static str> {
    let short = Short {
        figures: short.clone(),
        could_go: "; old images could go".to_owned(),
    };
    let failed = Err(Trouble::no_room(&short, Digest::to_string));
    if world.images.begun(world.now, other, failed, None) {
        world.images.short_of_room(world.now, other, &short);
    }
    world.drain()
}

fn message(world: &World, image: &Digest) -> String {
    let found = world.images.catalogue.find(image).unwrap();
    found.trouble.as_ref().unwrap().message.clone()
}

#[test]
fn what_is_kept_for_a_later_image_goes_to_the_one_before_it_and_its_files_stay() {
    let (mut world, other) = beside_another(true);
    let short = short(700, &[(world.image, 900)]);
    let drained = find_no_room(&mut world, other, &short);
    assert_eq!(
        drained,
        [
            "failed",
            "report",
            "withdraw",
            "failed",
            "report",
            "set aside"
        ]
    );
    assert_eq!(world.reason(), "no_room");
    let (said, first) = (message(&world, &world.image), message(&world, &other));
    assert!(said.contains(OTHER), "{said}");
    assert!(first.contains("lacking") && first.contains(NAME), "{first}");
    assert!(first.ends_with("; old images could go"), "{first}");
    // the first image is tried at once, and the later one after its pause
    assert_eq!(world.jobs(), ["begin"]);
    let running = world.images.reconciler().is_running(&other);
    assert!(running && !world.images.reconciler().is_running(&world.image));
}

#[test]
fn the_files_of_a_later_image_are_removed_where_nothing_less_makes_room() {
    let (mut world, other) = beside_another(true);
    let image = world.image;
    // all of it was zeros: to remove it would free nothing
    let short_of = short(1_400, &[(image, 900)]);
    assert_eq!(
        find_no_room(&mut world, other, &short_of),
        ["failed", "report"]
    );
    world.now += Duration::from_secs(60);
    assert_eq!(world.jobs(), ["begin"]);
    let too_much = short_beside(1_401, &[(image, 900)], (image, 500));
    let drained = find_no_room(&mut world, other, &too_much);
    assert_eq!(
        drained,
        ["failed", "report"],
        "it wouldn't fit all the same"
    );
    world.now += Duration::from_secs(60);
    assert_eq!(world.jobs(), ["begin"]);
    let short = short_beside(1_400, &[(image, 900)], (image, 500));
    let drained = find_no_room(&mut world, other, &short);
    assert!(drained.contains(&"abandon"), "{drained:?}");
    let said = message(&world, &image);
    assert!(said.contains("removed") && said.contains(OTHER), "{said}");
    assert_eq!(world.jobs(), [] as [&str; 0], "the files are being removed");
    world.images.abandoned(world.now, image);
    assert_eq!(world.jobs(), ["begin"]);
    assert!(world.images.reconciler().is_running(&other));
    // it is still wanted, and begun anew after its pause, once the other one has its room
    world.now += Duration::from_secs(60);
    assert_eq!(world.jobs(), [] as [&str; 0]);
    let begun = Ok((world.disk.clone(), 0));
    world.images.begun(world.now, other, begun, None);
    world.drain();
    assert!(world.jobs().contains(&"begin"));
    assert!(world.images.reconciler().is_running(&image));
}

/// The files of an image that found no room itself counted as nothing, and so the one before it waited for good.
#[test]
fn the_files_of_a_later_image_that_waits_for_room_itself_are_removed_too() {
    let mut world = World::new();
    world.recover();
    let (image, manifest) = (world.image, manifest("b"));
    let other = Digest::of(&manifest);
    let order = StageOrder {
        references: vec![OTHER.into()],
        ..StageOrder::default()
    };
    world
        .images
        .order(world.now, other, order.into(), &manifest);
    world.images.take_sequence(vec![other, image]);
    world.drain();
    assert_eq!(world.jobs(), ["begin", "begin"]);
    // its bytes are on the disk, and no room is kept for the rest of it
    find_no_room(&mut world, image, &short(50, &[]));
    assert_eq!(world.state(), StageState::Failed);
    let too_much = short_beside(501, &[], (image, 500));
    let drained = find_no_room(&mut world, other, &too_much);
    assert_eq!(drained, ["failed", "report"]);
    world
        .images
        .reconciler
        .wait(other, world.now, Duration::ZERO);
    assert_eq!(world.jobs(), ["begin"]);
    let drained = find_no_room(&mut world, other, &short_beside(500, &[], (image, 500)));
    assert!(drained.contains(&"abandon"), "{drained:?}");
    world.images.abandoned(world.now, image);
    assert_eq!(world.jobs(), ["begin"]);
    assert!(world.images.reconciler().is_running(&other));
}

/// Four images in this order: the first is being begun, and the others fill.
fn four_images() -> (World, [Digest; 4]) {
    let mut world = World::new();
    let images = ["a", "b", "c", "d"].map(|seed| {
        let manifest = manifest(seed);
        let (now, image) = (world.now, Digest::of(&manifest));
        let order = StageOrder {
            references: vec![format!("r.test/{seed}:1")],
            ..StageOrder::default()
        };
        world.images.order(now, image, order.into(), &manifest);
        image
    });
    world.images.take_sequence(images.to_vec());
    world.drain();
    assert_eq!(world.jobs(), ["begin"; 4]);
    for image in &images[1..] {
        let begun = Ok((Disk::default(), 0));
        world.images.begun(world.now, *image, begun, None);
    }
    world.jobs();
    for image in &images[1..] {
        world.images.recorded(world.now, *image, Ok(()));
    }
    world.drain();
    (world, images)
}

/// The first image was tried at the end of each removal, and had a third image's files removed beside two that were
/// enough.
#[test]
fn an_image_is_tried_when_all_of_the_room_that_was_made_for_it_is_there() {
    let (mut world, [a, b, c, d]) = four_images();
    let lacking = NoRoomError {
        need_bytes: 150,
        taken_by: [(b, 60), (c, 100), (d, 100)].into(),
        ..NoRoomError::default()
    };
    let drained = find_no_room(&mut world, a, &lacking);
    let removals = drained.iter().filter(|effect| **effect == "abandon");
    assert_eq!(removals.count(), 2, "{drained:?}");
    world.images.abandoned(world.now, d);
    // also when its pause is over
    for _ in 0..2 {
        assert_eq!(world.jobs(), [] as [&str; 0]);
        assert!(!world.images.reconciler().is_running(&a));
        world.now += Duration::from_mins(10);
    }
    world.images.abandoned(world.now, c);
    assert_eq!(world.jobs(), ["begin"]);
    assert!(world.images.reconciler().is_running(&a));
}

/// The files of a cancelled image were being removed, and another image's went too.
#[test]
fn nothing_gives_way_while_room_is_coming_already() {
    let (mut world, [a, b, c, d]) = four_images();
    world.images.cancel(world.now, d);
    assert!(world.jobs().contains(&"abandon"));
    let lacking = NoRoomError {
        need_bytes: 50,
        taken_by: [(b, 60), (c, 100)].into(),
        ..NoRoomError::default()
    };
    let drained = find_no_room(&mut world, a, &lacking);
    assert_eq!(drained, ["failed", "report"]);
    world.images.abandoned(world.now, d);
    assert_eq!(world.jobs(), ["begin"]);
    // it wasn't enough
    let drained = find_no_room(&mut world, a, &lacking);
    assert!(drained.contains(&"abandon"), "{drained:?}");
}

/// A later image that was begun beside it took the room for which another one's files had been removed.
#[test]
fn room_that_was_made_for_an_image_is_taken_by_no_later_one() {
    for ends in [Ends::Begins, Ends::Fails, Ends::IsCancelled] {
        let (mut world, other) = beside_another(true);
        let image = world.image;
        let short = short_beside(1_400, &[(image, 900)], (image, 500));
        let drained = find_no_room(&mut world, other, &short);
        assert!(drained.contains(&"abandon"), "{drained:?}");
        // the pause of the later image, whose files are gone, is over before that of the first
        world.images.abandoned(world.now, image);
        let wait = Duration::from_mins(1);
        world.images.reconciler.wait(other, world.now, wait);
        world.now += Duration::from_secs(30);
        assert_eq!(world.jobs(), [] as [&str; 0]);
        match ends {
            Ends::Begins | Ends::Fails => {
                world.now += Duration::from_secs(30);
                assert_eq!(world.jobs(), ["begin"]);
                assert!(world.images.reconciler().is_running(&other));
                let result = match ends {
                    Ends::Begins => Ok((world.disk.clone(), 0)),
                    _ => Err(trouble(Reason::NoRoom)),
                };
                world.images.begun(world.now, other, result, None);
            }
            Ends::IsCancelled => world.images.cancel(world.now, other),
        }
        world.drain();
        assert!(world.jobs().contains(&"begin"));
        assert!(world.images.reconciler().is_running(&image));
    }
}

/// What becomes of an image for which others gave way.
#[derive(Clone, Copy)]
enum Ends {
    Begins,
    Fails,
    IsCancelled,
}

/// What was cancelled or paused while it was begun took the room of others, and had their files removed.
#[test]
fn nothing_gives_way_to_an_image_that_is_wanted_no_more() {
    for cancelled in [true, false] {
        let (mut world, other) = beside_another(true);
        let image = world.image;
        match cancelled {
            true => world.images.cancel(world.now, other),
            false => world.images.pause(other),
        }
        world.drain();
        let short = short_beside(1_400, &[(image, 900)], (image, 500));
        let drained = find_no_room(&mut world, other, &short);
        assert!(!drained.contains(&"abandon"), "{drained:?}");
        assert!(!drained.contains(&"set aside"), "{drained:?}");
        assert!(world.images.catalogue().is_filling());
    }
}

#[test]
fn nothing_gives_way_to_a_later_image_or_one_without_an_order_and_no_installed_one_to_any() {
    let (mut world, other) = beside_another(false);
    let short = short(700, &[(world.image, 900)]);
    assert_eq!(
        find_no_room(&mut world, other, &short),
        ["failed", "report"]
    );
    assert!(world.images.catalogue().is_filling());
    let (mut world, other) = beside_another(true);
    world.disk.0.installed.set(true);
    assert_eq!(
        find_no_room(&mut world, other, &short),
        ["failed", "report"]
    );
    // an earlier coordinator gives no order
    let (mut world, other) = beside_another(true);
    world.images.take_sequence(Vec::new());
    world.drain();
    assert_eq!(
        find_no_room(&mut world, other, &short),
        ["failed", "report"]
    );
    assert!(world.images.catalogue().is_filling());
}
