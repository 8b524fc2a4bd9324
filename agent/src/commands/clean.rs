//! `parbake-agent clean --dry-run`: which old images the agent would remove.

use std::time::SystemTime;

use anyhow::{Context as _, bail};
use proto::figure::Bytes;
use serde_json::json;

use super::answer::print;
use crate::{
    cli::Clean,
    config::Config,
    retention::{Rule, Terms},
    store::{
        in_use,
        retire::{Preview, preview},
    },
};

/// Shows what the agent would remove. Removes nothing.
pub(crate) async fn clean(config: &Config, options: &Clean) -> anyhow::Result<bool> {
    let typed = Rule::new(options.keep, options.days)?;
    let Some(rule) = typed.or(config.retention.rule) else {
        bail!(
            "this host's settings don't say which old images stay, so the agent removes none but by a rule of the \
             fleet (`parbake clean --dry-run`): set keep_images or keep_days in the settings file, or see with --keep N \
             or --days D what it would do"
        );
    };
    let home = config.tart_home.clone();
    let previewed = tokio::task::spawn_blocking(move || {
        // the running agent keeps it within a minute
        let in_use = in_use::kept(&home);
        preview(&home, &Terms { rule, in_use }, SystemTime::now())
    });
    let preview = previewed
        .await?
        .with_context(|| format!("looking at images in {}", config.tart_home.display()))?;
    match options.json {
        true => print(&answer(&preview, rule).to_string()),
        false => print(text(&preview, rule).trim_end()),
    }
}

fn answer(preview: &Preview, rule: Rule) -> serde_json::Value {
    let images = preview.images.iter().map(|image| {
        json!({
            "digest": image.image.to_string(), "references": image.references, "goldens": image.goldens,
            "bytes": image.bytes, "goes": image.stays.is_none(),
            "why": image.stays.as_ref().map(ToString::to_string),
        })
    });
    json!({
        "keep": rule.images(), "days": rule.days(), "bytes": preview.freed_bytes(), "left_bytes": preview.left_bytes, "images": images.collect::<Vec<_>>(),
    })
}

/// The answer as people read it.
fn text(preview: &Preview, rule: Rule) -> String {
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
        0 => format!("nothing would go where {rule}"),
        count => format!(
            "{count} would go where {rule}: {}, less what they share with files that stay",
            Bytes(preview.freed_bytes())
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
        let rule = Rule::new(Some(1), None).unwrap().unwrap();
        assert_eq!(
            text(&preview, rule),
            "ghcr.io/org/image:1  2.0 GB  would go; goldens golden-1\n\
             ghcr.io/org/image:2  2.0 GB  stays: it is wanted; goldens golden-2\n\
             1 would go where 1 of a repository stay: 2.0 GB, less what they share with files that stay"
        );
        let answer = answer(&preview, rule);
        assert_eq!(answer["bytes"], 2_000_000_000_u64);
        assert_eq!(answer["images"][0]["goes"], true);
        assert_eq!(answer["images"][1]["why"], "it is wanted");
    }
}
