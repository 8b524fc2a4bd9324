use alloc::vec;

use super::*;
use crate::stage::plan::stand::{Stand, host, image};

/// Three hosts that stage images 1 to `count`; image 1 was asked for first.
fn stand(count: u32) -> Stand {
    let mut stand = Stand::new(3);
    for number in 1..=count {
        stand.want(number, &[number]);
        stand.rank(number, 0, &[]);
    }
    stand
}

fn due(sequences: &mut Sequences, stand: &Stand) -> Vec<(HostId, Vec<Digest>)> {
    sequences.take_due(&stand.images, &stand.hosts)
}

#[test]
fn every_host_with_several_images_is_told_their_order_once() {
    let mut sequences = Sequences::default();
    sequences.changed();
    assert_eq!(due(&mut sequences, &stand(1)), [], "one image has no order");
    sequences.changed();
    let both = vec![image(1), image(2)];
    let told = due(&mut sequences, &stand(2));
    let all = [1, 2, 3].map(|number| (host(number), both.clone()));
    assert_eq!(told, all);
    sequences.changed();
    assert_eq!(due(&mut sequences, &stand(2)), []);
    // a new session may be a new agent's
    sequences.connected(&host(2));
    assert_eq!(due(&mut sequences, &stand(2)), [(host(2), both)]);
}

#[test]
fn a_pod_that_waits_changes_the_order_on_its_host_alone() {
    let mut sequences = Sequences::default();
    let mut stand = stand(2);
    sequences.changed();
    due(&mut sequences, &stand);
    stand.rank(2, 0, &[3]);
    sequences.changed();
    let other = vec![image(2), image(1)];
    assert_eq!(due(&mut sequences, &stand), [(host(3), other)]);
}

#[test]
fn a_priority_changes_the_order_everywhere_and_a_host_that_is_away_hears_when_it_is_back() {
    let mut sequences = Sequences::default();
    let mut stand = stand(2);
    stand.hosts.disconnect(stand.now, &host(1));
    sequences.changed();
    due(&mut sequences, &stand);
    stand.rank(2, 1, &[]);
    sequences.changed();
    let other = vec![image(2), image(1)];
    let told = due(&mut sequences, &stand);
    assert_eq!(told, [2, 3].map(|number| (host(number), other.clone())));
    stand.hosts.connect(stand.now, &host(1));
    sequences.connected(&host(1));
    assert_eq!(due(&mut sequences, &stand), [(host(1), other)]);
}

#[test]
fn a_blob_that_a_mirrors_client_waits_for_has_no_place_in_an_order() {
    let mut sequences = Sequences::default();
    let mut stand = stand(1);
    stand.ask(9, 9);
    sequences.changed();
    assert_eq!(due(&mut sequences, &stand), []);
}

#[test]
fn an_image_that_is_first_somewhere_has_the_first_turn_and_one_that_cannot_go_on_holds_up_none() {
    let mut stand = stand(3);
    let turns = |stand: &Stand| {
        let images: Vec<&Image> = stand.images.iter().collect();
        let turns = turns(&images, &stand.hosts);
        [1, 2, 3].map(|number| turns.get(&image(number)).copied())
    };
    assert_eq!(turns(&stand), [Some(0), Some(1), Some(2)]);
    stand.rank(3, 0, &[2]);
    assert_eq!(turns(&stand), [Some(0), Some(1), Some(0)]);
    for number in 1..=3 {
        stand.report(&host(number), 1, Standing::Failed);
    }
    assert_eq!(turns(&stand), [None, Some(0), Some(0)]);
}
