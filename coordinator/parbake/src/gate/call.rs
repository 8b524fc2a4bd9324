//! How the gate is asked, and which failures of that pass by themselves. Each caller makes the number of its places and
//! sends it with every try, so that no try gets or gives back what others have.

use std::{str::FromStr, time::Duration};

use client::{
    CallError, Client,
    gate::{GateDone, GateDoneReply, GateReply, GateRequest},
};
use http::{Method, StatusCode};
use tokio::time::{Instant, sleep};

use crate::pauses::Pauses;

/// `gate done --place` tries for so long to reach the coordinator.
const NAMED_BACK: Duration = Duration::from_secs(60);

/// The number of a caller's places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Number(String);

impl Number {
    /// A number that nobody has made before.
    ///
    /// # Panics
    /// When the operating system gives no random bytes.
    pub(super) fn fresh() -> Self {
        let mut bytes = [0; 8];
        rustls::crypto::ring::default_provider()
            .secure_random
            .fill(&mut bytes)
            .expect("the operating system gives random bytes");
        Self(format!("{:016x}", u64::from_be_bytes(bytes)))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Number {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let usual = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        match text.len() == 16 && text.bytes().all(usual) {
            true => Ok(Self(text.to_owned())),
            false => Err("the number of a place has 16 digits 0-9 and a-f"),
        }
    }
}

/// Whether another try of a call may succeed. Asking again is safe: the place has the caller's number.
pub(super) fn passes(error: &CallError) -> bool {
    match error {
        CallError::Refused { status, .. } => status.is_server_error(),
        error => error.passes(),
    }
}

/// Whether this failure shows that the coordinator took nothing in: nobody answered as it, or it refused.
pub(super) fn never_asked(error: &CallError) -> bool {
    match error {
        CallError::Refused { status, .. } => !status.is_server_error(),
        CallError::Away { unheard, .. } => *unheard,
        CallError::Stranger { .. } => true,
        CallError::Odd(_) => false,
    }
}

/// A coordinator of an earlier version knows no numbers. It can't tell one caller's place from another's, so nothing is
/// asked of it.
fn explained(error: CallError) -> CallError {
    let unknown = |text: &str| {
        ["`place`", "`any`"]
            .iter()
            .any(|field| text.contains(&format!("unknown field {field}")))
    };
    match error {
        CallError::Refused { status, text } if status == StatusCode::BAD_REQUEST && unknown(&text) => {
            CallError::Refused {
                status,
                text: "the coordinator is of an earlier version than this parbake, and can't tell callers' places apart; \
                       upgrade the coordinator first, or use the parbake of its version"
                    .to_owned(),
            }
        }
        error => error,
    }
}

/// Asks the gate once.
pub(super) async fn ask(client: &Client, request: &GateRequest) -> Result<GateReply, CallError> {
    let reply = client.read(Method::POST, "/v1/gate", Some(request));
    reply.await.map_err(explained)
}

/// Gives a place back. Tries again for a while where that may help: a repeated call is safe.
pub(super) async fn done(
    client: &Client,
    body: &GateDone,
    patience: Duration,
) -> Result<GateDoneReply, CallError> {
    let until = Instant::now() + patience;
    let mut pauses = Pauses::unreachable();
    loop {
        let reply = client.read(Method::POST, "/v1/gate/done", Some(body));
        match reply.await {
            Err(error) if passes(&error) && Instant::now() < until => sleep(pauses.next()).await,
            answered => return answered.map_err(explained),
        }
    }
}

/// Gives a place back, as `gate done` does. One that is named is tried for [`NAMED_BACK`], and `tell` hears why.
/// Without its number a repeat could give back another caller's.
pub(super) async fn done_by_hand(
    client: &Client,
    body: &GateDone,
    tell: impl FnOnce(&str),
) -> Result<GateDoneReply, CallError> {
    match done(client, body, Duration::ZERO).await {
        Err(error) if passes(&error) && body.place.is_some() => {
            tell(&format!(
                "{error}\nit is tried again for {} s\n",
                NAMED_BACK.as_secs()
            ));
            done(client, body, NAMED_BACK).await
        }
        answered => answered,
    }
}

#[cfg(test)]
mod tests {
    use client::Target;
    use proto::Digest;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_place_that_is_named_is_tried_again_and_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let client = Client::new(Target::without_token(address, Digest::of(b"pin")));
        let body = |place: Option<&str>| GateDone {
            host: "mini-1".to_owned(),
            place: place.map(str::to_owned),
            any: place.is_none(),
            ..GateDone::default()
        };
        // whoever calls finds a coordinator that goes away
        let hangs_up = async |times: usize| {
            for _ in 0..times {
                drop(listener.accept().await.unwrap());
            }
        };
        let any = body(None);
        let (any, ()) = tokio::join!(
            done_by_hand(&client, &any, |_| panic!("it is tried once")),
            hangs_up(1)
        );
        assert!(any.is_err_and(|error| passes(&error)));
        let mut told = String::new();
        let named = body(Some("00000000000000ab"));
        tokio::select! {
            done = done_by_hand(&client, &named, |text| told.push_str(text)) => panic!("{done:?}"),
            () = hangs_up(3) => {}
        }
        assert!(told.contains("it is tried again for 60 s"), "{told}");
    }

    #[test]
    fn numbers_are_made_anew_and_read_back() {
        let (one, two) = (Number::fresh(), Number::fresh());
        assert_ne!(one, two);
        assert_eq!(one.as_str().parse(), Ok(one.clone()));
        assert!("7".parse::<Number>().is_err() && "0123456789ABCDEF".parse::<Number>().is_err());
    }

    #[test]
    fn a_coordinator_that_knows_no_numbers_is_named_as_that() {
        let refused = |text: &str| CallError::Refused {
            status: StatusCode::BAD_REQUEST,
            text: text.to_owned(),
        };
        let old = explained(refused(
            "the body: unknown field `place`, expected one of `image`",
        ));
        assert!(old.to_string().contains("upgrade the coordinator"), "{old}");
        assert_eq!(
            explained(refused("`digest`: no")).to_string(),
            "`digest`: no"
        );
    }
}
