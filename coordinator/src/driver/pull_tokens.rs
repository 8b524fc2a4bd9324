//! Pull tokens for hosts, so that hosts need no credentials: when each image's token is asked for, and what came of
//! each attempt.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use proto::{Digest, Moment};
use tracing::warn;

use super::input::Input;
use crate::resolve::{Granted, PullToken, Registries};

/// A pull token is renewed when less than this remains of it.
const MARGIN: Duration = Duration::from_secs(60);
/// A pull token that the registry refuses is replaced no sooner than this after it was given.
const RENEWED_AFTER: Duration = Duration::from_secs(3);
/// The pause after a failed attempt at a pull token.
const RETRY: Duration = Duration::from_secs(10);

/// The pull tokens of images.
#[derive(Debug, Default)]
pub(super) struct PullTokens(BTreeMap<Digest, State>);

/// The token of one image.
#[derive(Debug, Default)]
struct State {
    token: Option<(PullToken, Moment)>,
    /// When the next token is asked for. `None` while an ask is under way, or when no token is handed down.
    due: Option<Moment>,
    /// Whether the registry refuses the token that hosts have.
    refused: bool,
}

/// What came of an attempt at a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// Hosts are to get the new token. `after_refusal`: the registry refused the token before, and may give with this
    /// one what it refused then.
    New { after_refusal: bool },
    /// There is no new token.
    Nothing,
}

/// A pull token that is to be asked for.
#[derive(Debug)]
pub(super) struct TokenAsk {
    pub(super) image: Digest,
    /// `None` where the image has no reference.
    pub(super) reference: Option<String>,
    /// The pull Secret of the reference.
    pub(super) secret: Option<String>,
}

impl TokenAsk {
    /// Asks the image's registry. Ends in [`Input::Token`].
    pub(super) async fn answered(self, registries: Arc<Registries>) -> Input {
        let granted = match self.reference {
            None => None,
            Some(reference) => registries
                .pull_token(&reference, self.secret.as_ref())
                .await
                .inspect_err(
                    |error| warn!(%error, reference, "no pull token for hosts; trying again"),
                )
                .ok(),
        };
        Input::Token {
            image: self.image,
            granted,
        }
    }
}

impl PullTokens {
    /// An image is wanted, and its registry's tokens are handed down.
    pub(super) fn wanted(&mut self, now: Moment, image: Digest) {
        let state = self.0.entry(image).or_default();
        if state.token.is_none() {
            state.due.get_or_insert(now);
        }
    }

    /// The image has other credentials now. `handed_down`: its registry's tokens are handed down.
    pub(super) fn wanted_anew(&mut self, now: Moment, image: Digest, handed_down: bool) {
        self.0.entry(image).or_default().due = handed_down.then_some(now);
    }

    /// The image isn't wanted any more.
    pub(super) fn forget(&mut self, image: &Digest) {
        self.0.remove(image);
    }

    /// When the next token is asked for.
    pub(super) fn due(&self) -> Option<Moment> {
        self.0.values().filter_map(|state| state.due).min()
    }

    /// The images whose tokens are to be asked for now. Each counts as asked for after this call.
    pub(super) fn take_due(&mut self, now: Moment) -> Vec<Digest> {
        let mut due = Vec::new();
        for (image, state) in &mut self.0 {
            if state.due.take_if(|at| *at <= now).is_some() {
                due.push(*image);
            }
        }
        due
    }

    /// Hosts say that the registry refuses the token that they were given for these images. A new token is asked for at
    /// once, whatever the old one's lifetime. A token that was given less than [`RENEWED_AFTER`] ago isn't replaced, so
    /// that the registry isn't asked too often.
    pub(super) fn refused(&mut self, now: Moment, images: impl IntoIterator<Item = Digest>) {
        for image in images {
            let Some(state) = self.0.get_mut(&image) else {
                continue;
            };
            let old = |(_, at): &(PullToken, Moment)| now.since(*at) >= RENEWED_AFTER;
            if state.token.as_ref().is_some_and(old) {
                state.due = Some(now);
                state.refused = true;
            }
        }
    }

    /// An attempt at a token ended. `granted` is `None` when the attempt failed.
    pub(super) fn take(&mut self, now: Moment, image: &Digest, granted: Option<Granted>) -> Given {
        let Some(state) = self.0.get_mut(image) else {
            return Given::Nothing;
        };
        let token = match granted {
            Some(Granted::Token(token)) => token,
            Some(Granted::Unneeded) => return Given::Nothing,
            Some(Granted::PasswordOnly) => {
                warn!(
                    %image,
                    "registry gives no tokens, only a password, which isn't handed down: \
                     set origin.hand_down_passwords = true, or give hosts credentials of their own"
                );
                return Given::Nothing;
            }
            None => {
                state.due = Some(now + RETRY);
                return Given::Nothing;
            }
        };
        // The next token is asked for at half of this one's life at the soonest, because some registries give tokens of
        // a minute.
        let pause = token
            .expires_in
            .checked_sub(MARGIN)
            .unwrap_or_default()
            .max(token.expires_in / 2)
            .max(Duration::from_secs(1));
        state.due = Some(now + pause);
        state.token = Some((token, now));
        Given::New {
            after_refusal: std::mem::take(&mut state.refused),
        }
    }

    /// The token that hosts are given for the image.
    pub(super) fn get(&self, image: &Digest) -> Option<&PullToken> {
        let (token, _) = self.0.get(image)?.token.as_ref()?;
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::START + Duration::from_secs(seconds)
    }

    fn image() -> Digest {
        Digest::of(b"image")
    }

    fn token(seconds: u64) -> Option<Granted> {
        Some(Granted::Token(PullToken {
            authorization: "Bearer x".into(),
            expires_in: Duration::from_secs(seconds),
        }))
    }

    #[tokio::test]
    async fn an_image_without_a_reference_gets_no_token_and_is_answered() {
        let ask = TokenAsk {
            image: image(),
            reference: None,
            secret: None,
        };
        let registries = Registries::new(crate::config::Origin::default()).unwrap();
        let answer = ask.answered(Arc::new(registries)).await;
        assert!(matches!(answer, Input::Token { image: of, granted: None } if of == image()));
    }

    const NEW: Given = Given::New {
        after_refusal: false,
    };

    #[test]
    fn a_token_is_asked_for_once_and_renewed_a_minute_before_its_end_or_at_half_of_a_short_life() {
        for (life, renewed) in [(300, 240), (121, 61), (120, 60), (100, 50), (1, 1)] {
            let mut tokens = PullTokens::default();
            tokens.wanted(at(0), image());
            assert_eq!(tokens.take_due(at(0)), [image()]);
            assert!(tokens.take_due(at(99)).is_empty(), "one is on its way");
            assert_eq!(tokens.take(at(100), &image(), token(life)), NEW);
            // the image is wanted again, and has a token already
            tokens.wanted(at(100), image());
            assert_eq!(tokens.due(), Some(at(100 + renewed)), "{life}");
            assert!(tokens.get(&image()).is_some());
        }
    }

    #[test]
    fn a_refused_token_is_replaced_once_it_is_three_seconds_old() {
        let mut tokens = PullTokens::default();
        tokens.wanted(at(0), image());
        tokens.take_due(at(0));
        tokens.refused(at(5), [image()]);
        assert_eq!(tokens.due(), None, "no token was given yet");
        tokens.take(at(10), &image(), token(300));
        tokens.refused(at(12), [image()]);
        assert_eq!(tokens.due(), Some(at(250)));
        tokens.refused(at(13), [image()]);
        assert_eq!(tokens.take_due(at(13)), [image()]);
        let after = Given::New {
            after_refusal: true,
        };
        assert_eq!(tokens.take(at(14), &image(), token(300)), after);
        assert_eq!(tokens.take(at(15), &image(), token(300)), NEW);
    }

    #[test]
    fn a_failed_attempt_is_made_again_after_ten_seconds_and_what_needs_none_isnt() {
        let mut tokens = PullTokens::default();
        tokens.wanted(at(0), image());
        tokens.take_due(at(0));
        assert_eq!(tokens.take(at(1), &image(), None), Given::Nothing);
        assert!(tokens.take_due(at(10)).is_empty());
        assert_eq!(tokens.take_due(at(11)), [image()]);
        for granted in [Granted::Unneeded, Granted::PasswordOnly] {
            assert_eq!(tokens.take(at(12), &image(), Some(granted)), Given::Nothing);
            assert_eq!(tokens.due(), None);
        }
        // other credentials may get a token
        tokens.wanted_anew(at(20), image(), true);
        assert_eq!(tokens.due(), Some(at(20)));
        tokens.wanted_anew(at(20), image(), false);
        assert_eq!(tokens.due(), None);
    }

    #[test]
    fn a_token_that_comes_after_its_image_was_cancelled_is_nobodys() {
        let mut tokens = PullTokens::default();
        tokens.wanted(at(0), image());
        tokens.take_due(at(0));
        tokens.forget(&image());
        assert_eq!(tokens.take(at(1), &image(), token(300)), Given::Nothing);
        assert!(tokens.get(&image()).is_none());
    }
}
