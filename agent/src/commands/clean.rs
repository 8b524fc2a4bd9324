//! `parbake-agent clean --dry-run`: which old images the agent would remove.

use std::time::SystemTime;

use anyhow::{Context as _, bail};
use proto::figure::Bytes;
use serde_json::json;

use super::answer::print;
use crate::{
    cli::Clean,
    config::Config,
    store::retire::{Preview, preview},
};

/// Shows what the agent would remove. Removes nothing.
pub(crate) async fn clean(config: &Config, options: &Clean) -> anyhow::Result<bool> {
    let keep = options.keep.and_then(|keep| usize::try_from(keep).ok());
    let Some(keep) = keep.or(config.keep_images) else {
        bail!(
            "how many images of a repository stay isn't set, so the agent removes none: set keep_images in the settings \
             file, or see with --keep N what it would do"
        );
    };
    let home = config.tart_home.clone();
    let previewed = tokio::task::spawn_blocking(move || preview(&home, keep, SystemTime::now()));
    let preview = previewed
        .await?
        .with_context(|| format!("looking at images in {}", config.tart_home.display()))?;
    match options.json {
        true => print(&answer(&preview, keep).to_string()),
        false => print(text(&preview, keep).trim_end()),
    }
}

/// Bytes of the images that would go.
fn bytes(preview: &Preview) -> u64 {
    let go = preview.images.iter().filter(|image| image.stays.is_none());
    go.map(|image| image.bytes).sum()
}

fn answer(preview: &Preview, keep: usize) -> serde_json::Value {
    let images = preview.images.iter().map(|image| {
        json!({
            "digest": image.image.to_string(), "references": image.references, "goldens": image.goldens,
            "bytes": image.bytes, "goes": image.stays.is_none(),
            "why": image.stays.as_ref().map(ToString::to_string),
        })
    });
    json!({
        "keep": keep, "bytes": bytes(preview), "left_bytes": preview.left_bytes, "images": images.collect::<Vec<_>>(),
    })
}

/// The answer as people read it.
fn text(preview: &Preview, keep: usize) -> String {
    let mut text = String::new();
    for image in &preview.images {
        let becomes = match &image.stays {
            None => "would go".to_owned(),
            Some(stays) => format!("stays: {stays}"),
        };
        let named = match &image.references[..] {
            [] => image.image.to_string(),
            references => references.join(", "),
        };
        text += &format!("{named}  {}  {becomes}", Bytes(image.bytes));
        if !image.goldens.is_empty() {
            text += &format!("; goldens {}", image.goldens.join(", "));
        }
        text.push('\n');
    }
    let go = preview.images.iter().filter(|image| image.stays.is_none());
    text += &match go.count() {
        0 => format!("nothing would go where {keep} of a repository stay"),
        count => format!(
            "{count} would go where {keep} of a repository stay: {}, less what they share with files that stay",
            Bytes(bytes(preview))
        ),
    };
    if preview.left_bytes > 0 {
        let left = Bytes(preview.left_bytes);
        text += &format!("; {left} of images that went before are still to be removed");
    }
    text
}

#[cfg(test)]
mod tests {
    use proto::Digest;

    use super::*;
    use crate::store::retire::{Previewed, Stays};

    #[test]
    fn what_would_go_is_told_from_what_stays() {
        let image = |name: &str, stays: Option<Stays>| Previewed {
            image: Digest::of(name.as_bytes()),
            references: vec![format!("ghcr.io/org/image:{name}")],
            goldens: vec![format!("golden-{name}")],
            stays,
            bytes: 2_000_000_000,
        };
        let preview = Preview {
            images: vec![image("1", None), image("2", Some(Stays::Wanted))],
            left_bytes: 0,
        };
        assert_eq!(
            text(&preview, 1),
            "ghcr.io/org/image:1  2.0 GB  would go; goldens golden-1\n\
             ghcr.io/org/image:2  2.0 GB  stays: it is wanted; goldens golden-2\n\
             1 would go where 1 of a repository stay: 2.0 GB, less what they share with files that stay"
        );
        let answer = answer(&preview, 1);
        assert_eq!(answer["bytes"], 2_000_000_000_u64);
        assert_eq!(answer["images"][0]["goes"], true);
        assert_eq!(answer["images"][1]["why"], "it is wanted");
    }
}
