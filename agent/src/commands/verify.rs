//! `parbake-agent verify`: an installed image is hashed again.

use std::time::Instant;

use anyhow::Context as _;
use serde_json::json;

use super::answer::print;
use crate::{
    config::Config,
    store::{self, VerifyError},
};

/// Hashes an installed image again; `false` when it isn't what its manifest says.
pub(crate) async fn verify(config: &Config, image: &str, json: bool) -> anyhow::Result<bool> {
    let (home, image_name) = (config.tart_home.clone(), image.to_owned());
    let started = Instant::now();
    let checked = tokio::task::spawn_blocking(move || {
        let verified = store::verify(&home, &image_name, |_, _| {});
        let damaged = verified.as_ref().is_err_and(VerifyError::is_damage);
        // the agent withdraws its presence and mends it
        let told = damaged.then(|| store::doubt(&home, &image_name));
        (verified, told)
    });
    let (verified, told) = checked.await?;
    let elapsed_ms = proto::millis(started.elapsed());
    let (verified, digest, mut message) = match verified {
        Ok(verified) => (true, Some(verified.digest.to_string()), String::new()),
        // nothing is said about an image that isn't here: a typo is no damage
        Err(
            error @ (VerifyError::Reference { .. }
            | VerifyError::Io { .. }
            | VerifyError::NotThere { .. }),
        ) => {
            return Err(error).with_context(|| format!("verifying {image}"));
        }
        Err(error) => (false, None, error.to_string()),
    };
    match told {
        Some(Ok(true)) => {
            message += "; where the agent runs and the image is still wanted, it withdraws its presence and mends it within seconds; \
                        else remove it with `tart delete`, and stage it anew";
        }
        Some(Ok(false)) => {
            message += "; this host's agent didn't stage it: remove it with `tart delete`, and pull or stage it anew";
        }
        Some(Err(error)) => message += &format!("; the agent can't be told: {error}"),
        None => {}
    }
    if json {
        let answer = json!({"image": image, "verified": verified, "digest": digest, "message": message, "elapsed_ms": elapsed_ms});
        print(&answer.to_string())?;
    } else if verified {
        print(&format!(
            "{image} is what its manifest says ({elapsed_ms} ms)"
        ))?;
    } else {
        print(&format!("{image} is NOT what its manifest says: {message}"))?;
    }
    Ok(verified)
}
