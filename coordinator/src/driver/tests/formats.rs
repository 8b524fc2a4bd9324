//! Tests that images of a kind are ordered only to hosts whose agents can stage them.

use super::*;
use crate::wants::tests::stacked_want;

#[test]
fn a_stacked_image_is_ordered_to_hosts_that_can_stage_it_and_no_others() {
    let mut world = World::new();
    let able = message::Hello {
        stages_stacked: true,
        ..World::hello()
    };
    let (_, mut new) = world.open("new", able.clone());
    let (session, mut old) = world.open("old", World::hello());
    let stages = |orders: &mut Receiver<Arc<message::Order>>| {
        let orders = taken(orders, |kind| match kind {
            Kind::Stage(stage) => Some(stage.manifest_digest.clone()),
            _ => None,
        });
        orders.len()
    };
    world.stage_want(stacked_want("stack")).unwrap();
    world.settle();
    assert_eq!((stages(&mut new), stages(&mut old)), (1, 0));
    let image = stacked_want("stack").digest();
    let on = |world: &World, host: &str| {
        let view = world.host(host);
        let found = view.images.iter().find(|of| of.digest == image.to_string());
        let progress = found.map(|found| &found.progress);
        progress.map(|progress| {
            (
                progress.state,
                progress.reason.as_deref().map(str::to_owned),
            )
        })
    };
    let declined = Some((HostState::Failed, Some("needs_newer_agent".to_owned())));
    assert_eq!(on(&world, "old"), declined);
    // nor when somebody asks again, or the host reports
    world.stage_want(stacked_want("stack")).unwrap();
    world.report("old", session, message::Report::default());
    world.settle();
    assert_eq!(stages(&mut old), 0);
    // flat images are, and after an upgrade stacked ones too
    world.stage("flat").unwrap();
    world.settle();
    assert_eq!(stages(&mut old), 1);
    let (_, mut upgraded) = world.open("old", able);
    world.settle();
    assert!(stages(&mut upgraded) >= 1);
}
