use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{chain::Resume, chunks::Geometry};

/// Signs by a hash with the key's bytes. That is enough for these tests.
fn toy(key: &[u8], bytes: &[u8]) -> LinkSignature {
    let half = Digest::of(&[key, bytes].concat());
    let mut signature = [0; 64];
    signature[..32].copy_from_slice(half.as_bytes());
    signature
}

struct Toy;

impl Verify for Toy {
    fn ticket(&self, ticket: &Ticket) -> bool {
        ticket.signature() == toy(b"authority", &ticket.signed_bytes())
    }

    fn link(&self, key: &LinkKey, bytes: &[u8], signature: &LinkSignature) -> bool {
        *signature == toy(key, bytes)
    }
}

const NOW: u64 = 1_000;

fn ticket(content: Option<Digest>, maker: u8, number: u64) -> Arc<Ticket> {
    let host = std::format!("host-{maker}").parse().unwrap();
    let sign = |bytes: &[u8]| Ok::<_, ()>(toy(b"authority", bytes).to_vec());
    let issued = Ticket::issue(content, &host, [maker; 32], number, NOW + 60, sign);
    Arc::new(issued.unwrap())
}

fn sign(content: Digest, chunk: u32, link: Link, run: &Arc<Run>) -> Signed {
    let key = *run.ticket().key();
    let run = run.clone();
    Signed::new(content, ChunkIndex(chunk), link, run, |bytes| {
        toy(&key, bytes)
    })
}

/// A content of four chunks, and its true links.
fn truth() -> (Digest, Geometry, Vec<Link>) {
    let bytes: Vec<u8> = (0u32..(3 << 20) + 9)
        .map(|at| at.to_le_bytes()[1] ^ at.to_le_bytes()[2])
        .collect();
    let geometry = Geometry::new(bytes.len() as u64).unwrap();
    let mut state = State::INITIAL;
    let links = bytes.chunks(1 << 20).zip(0..).map(|(bytes, chunk)| {
        let link = Link::forge(geometry, ChunkIndex(chunk), state, bytes);
        state = link.after;
        link
    });
    (Digest::of(&bytes), geometry, links.collect())
}

fn states_of(links: &[Link]) -> impl Fn(ChunkIndex) -> Option<State> + '_ {
    |chunk| match links.get(chunk.0 as usize) {
        Some(link) => Some(link.before),
        None => links.last().map(|link| link.after),
    }
}

fn state(seed: u8) -> State {
    State::from_bytes(&[seed; 32])
}

fn invented(before: State, after: u8) -> Link {
    Link {
        before,
        after: state(after),
        fingerprint: crate::Fingerprint([0; 16]),
        resume: Some(Resume {
            blob_offset: 9,
            skip_bytes: 3,
        }),
    }
}

#[test]
fn what_was_signed_reads_the_same_and_is_accepted() {
    let (content, _, links) = truth();
    let lease = ticket(Some(content), 1, 7);
    let first = sign(
        content,
        0,
        links[0],
        &Arc::new(Run::made(lease.clone(), 1, None)),
    );
    let other = ticket(Some(content), 2, 9);
    let run = Arc::new(Run::made(other, 5, Some(first.clone())));
    let second = sign(content, 1, links[1], &run);
    let vouched = sign(
        content,
        2,
        links[2],
        &Arc::new(Run::vouched(ticket(None, 3, 1))),
    );
    for signed in [&first, &second, &vouched] {
        let again = Signed::parse(content, signed.chunk, &signed.to_message()).unwrap();
        assert_eq!(again, *signed);
        assert_eq!(again.verify(NOW, false, &Toy), Ok(()));
        assert_eq!(
            again.verify(NOW + 60, false, &Toy),
            Err(StatementError::Expired)
        );
    }
    // a base carries no base of its own, and its signed bytes are the same without one
    let third = Arc::new(Run::made(lease, 2, Some(second.clone())));
    let third = sign(content, 2, links[2], &third);
    let again = Signed::parse(content, third.chunk, &third.to_message()).unwrap();
    let base = again.statement.run.base().unwrap();
    assert!(base.statement.run.base().is_none());
    assert_eq!(base.signed_bytes(), second.signed_bytes());
    assert_eq!(again.verify(NOW, false, &Toy), Ok(()));
}

#[test]
fn nobody_makes_links_without_a_lease_or_in_anothers_name() {
    let (content, _, links) = truth();
    let run = |ticket| Arc::new(Run::made(ticket, 1, None));
    let other = sign(
        content,
        0,
        links[0],
        &run(ticket(Some(Digest::of(b"other")), 1, 7)),
    );
    assert_eq!(other.verify(NOW, true, &Toy), Err(StatementError::Unleased));
    // under a standing ticket, a host may only vouch while a coordinator grants leases
    let alone = sign(content, 0, links[0], &run(ticket(None, 1, 7)));
    assert_eq!(
        alone.verify(NOW, false, &Toy),
        Err(StatementError::Unleased)
    );
    assert_eq!(alone.verify(NOW, true, &Toy), Ok(()));
    // a ticket that the host gave itself
    let host = "host-1".parse().unwrap();
    let own = Ticket::issue(Some(content), &host, [1; 32], 7, NOW + 60, |bytes| {
        Ok::<_, ()>(toy(b"somebody", bytes).to_vec())
    });
    let own = sign(content, 0, links[0], &run(Arc::new(own.unwrap())));
    assert_eq!(own.verify(NOW, true, &Toy), Err(StatementError::Ticket));
    // the ticket of another host
    let stolen = run(ticket(Some(content), 1, 7));
    let stolen = Signed::new(content, ChunkIndex(0), links[0], stolen, |bytes| {
        toy(&[2; 32], bytes)
    });
    assert_eq!(
        stolen.verify(NOW, true, &Toy),
        Err(StatementError::Signature)
    );
    // the name of another host beside the host's own ticket
    let mut message = other.to_message();
    message.maker = "host-2".into();
    assert!(Signed::parse(content, ChunkIndex(0), &message).is_err());
    message.statement = None;
    assert_eq!(
        Signed::parse(content, ChunkIndex(0), &message),
        Err(FieldError::Unsigned)
    );
}

#[test]
fn a_run_that_goes_on_from_another_shows_from_which() {
    let (content, _, links) = truth();
    let lease = ticket(Some(content), 1, 7);
    let base = sign(
        content,
        0,
        links[0],
        &Arc::new(Run::made(lease.clone(), 1, None)),
    );
    let run = Arc::new(Run::made(
        ticket(Some(content), 2, 8),
        1,
        Some(base.clone()),
    ));
    let false_start = sign(content, 1, invented(state(3), 4), &run);
    assert_eq!(
        false_start.verify(NOW, false, &Toy),
        Err(StatementError::Base)
    );
    let honest = sign(content, 1, links[1], &run);
    let hidden = |change: &dyn Fn(&mut message::Statement)| {
        let mut message = honest.to_message();
        change(message.statement.as_mut().unwrap());
        Signed::parse(content, ChunkIndex(1), &message)
    };
    assert_eq!(hidden(&|_| ()).as_ref(), Ok(&honest));
    assert!(hidden(&|statement| statement.base = None).is_err());
    assert!(hidden(&|statement| statement.base_digest = vec![0; 32]).is_err());
    assert!(hidden(&|statement| statement.first = 0).is_err());
    // as if the run had begun there: the maker didn't sign that
    let moved = hidden(&|statement| {
        (statement.first, statement.base, statement.base_digest) = (0, None, Vec::new());
    });
    assert_eq!(
        moved.unwrap().verify(NOW, false, &Toy),
        Err(StatementError::Signature)
    );
    // the base must be signed by its maker
    let forged = Signed {
        statement: Statement {
            signature: [9; 64],
            ..base.statement.clone()
        },
        ..base
    };
    let run = Arc::new(Run::made(ticket(Some(content), 2, 8), 1, Some(forged)));
    assert_eq!(
        sign(content, 1, links[1], &run).verify(NOW, false, &Toy),
        Err(StatementError::Signature)
    );
}

#[test]
fn contradictions_convict_their_maker_and_nobody_else() {
    let (content, _, links) = truth();
    let lease = ticket(Some(content), 1, 7);
    let run = Arc::new(Run::made(lease.clone(), 1, None));
    let true_first = sign(content, 0, links[0], &run);
    let true_second = sign(content, 1, links[1], &run);
    let false_first = sign(content, 0, invented(links[0].before, 8), &run);
    assert_eq!(contradiction(&true_first, &true_second), None);
    assert_eq!(
        contradiction(&true_first, &false_first),
        Some(Contradiction::Lie)
    );
    for (one, other) in [(&false_first, &true_second), (&true_second, &false_first)] {
        assert_eq!(contradiction(one, other), Some(Contradiction::Lie));
    }
    // a second pass brought other bytes: the registry may have sent them
    let again = Arc::new(Run::made(lease, 2, None));
    let second_pass = sign(content, 0, invented(links[0].before, 8), &again);
    assert_eq!(
        contradiction(&true_first, &second_pass),
        Some(Contradiction::False)
    );
    assert_eq!(contradiction(&second_pass, &true_second), None);
    // links of another host, and of another content
    let other = Arc::new(Run::made(ticket(Some(content), 2, 7), 1, None));
    let other = sign(content, 0, invented(links[0].before, 8), &other);
    assert_eq!(contradiction(&true_first, &other), None);
    // vouched twice
    let vouched = Arc::new(Run::vouched(ticket(None, 3, 1)));
    let renewed = Arc::new(Run::vouched(ticket(None, 3, 2)));
    assert_eq!(
        contradiction(
            &sign(content, 2, links[2], &vouched),
            &sign(content, 2, invented(links[2].before, 1), &renewed)
        ),
        Some(Contradiction::Lie)
    );
}

#[test]
fn the_one_who_made_a_false_link_is_judged_and_not_who_went_on_from_it() {
    let (content, _, links) = truth();
    let truth = states_of(&links);
    let liar = Arc::new(Run::made(ticket(Some(content), 1, 7), 1, None));
    let lie = sign(content, 0, invented(State::INITIAL, 5), &liar);
    let misled = Arc::new(Run::made(ticket(Some(content), 2, 8), 1, Some(lie.clone())));
    for chunk in [1, 2] {
        let link = sign(content, chunk, invented(state(5), 6), &misled);
        assert_eq!(judge(&link, &truth), Some(lie.clone()), "{chunk}");
    }
    assert_eq!(judge(&lie, &truth), Some(lie.clone()));
    // links after a host's own lie are false, and the host is to blame for them
    let later = sign(content, 2, invented(state(8), 9), &liar);
    assert_eq!(judge(&later, &truth), Some(later.clone()));
    // a host that continues a true link has no excuse for a false one
    let true_first = sign(content, 0, links[0], &liar);
    let heir = Arc::new(Run::made(ticket(Some(content), 2, 8), 2, Some(true_first)));
    let lie = sign(content, 2, invented(state(8), 9), &heir);
    assert_eq!(judge(&lie, &truth), Some(lie.clone()));
    let fine = sign(content, 2, links[2], &heir);
    assert_eq!(judge(&fine, &truth), None);
}

proptest! {
    #[test]
    fn any_bytes_are_a_statement_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(message) = message::Link::decode(bytes.as_slice())
            && let Ok(signed) = Signed::parse(Digest::of(b"x"), ChunkIndex(3), &message)
        {
            prop_assert!(signed.verify(NOW, true, &Toy).is_err());
        }
    }

    /// Whatever is changed on the way, no link is accepted that its maker didn't sign.
    #[test]
    fn a_flipped_bit_is_never_accepted(at: prop::sample::Index, bit in 0u8..8, based: bool) {
        let (content, chunk) = (Digest::of(b"x"), u32::from(based));
        let base = sign(content, 0, invented(State::INITIAL, 2), &Arc::new(Run::made(ticket(Some(content), 1, 7), 1, None)));
        let run = Arc::new(Run::made(ticket(Some(content), 2, 9), 4, based.then_some(base)));
        let signed = sign(content, chunk, invented(state(2), 3), &run);
        let mut bytes = signed.to_message().encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(message) = message::Link::decode(bytes.as_slice())
            && let Ok(parsed) = Signed::parse(content, ChunkIndex(chunk), &message)
            && parsed.verify(NOW, true, &Toy).is_ok()
        {
            // another writing of the same
            prop_assert_eq!(parsed, signed);
        }
    }
}
