//! Rules about old images: which of them stay on a host although nobody wants them, by their number and by their age.

use core::{fmt, time::Duration};

use crate::message::RetentionRule;

/// The most images of a repository that a rule may keep by their number. More never fit on a Mac.
pub const MAX_KEEP_IMAGES: u32 = 1_000;
/// The longest time after its last use for which a rule may keep an image, in days: ten years.
pub const MAX_KEEP_DAYS: u32 = 3_650;
/// The most references that a host is told to be in use by Pods and pools. Beyond them it retires nothing.
pub const MAX_IN_USE: usize = 64;

const DAY: Duration = Duration::from_hours(24);

/// Which images stay although nobody wants them. At least one of the two is set. Where both are, an image stays if
/// either says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    images: Option<u32>,
    days: Option<u32>,
}

/// Why two numbers aren't a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The number of images is out of bounds.
    #[error("keep_images is {0}; it has to be from 1 to {MAX_KEEP_IMAGES}, or be left out")]
    Images(u32),
    /// The number of days is out of bounds.
    #[error("keep_days is {0}; it has to be from 1 to {MAX_KEEP_DAYS}, or be left out")]
    Days(u32),
}

impl Rule {
    /// The rule by which the most images go: one of each repository stays.
    pub const STRICTEST: Self = Self {
        images: Some(1),
        days: None,
    };

    /// The rule that so many images of each repository stay, and each image for so many days after its last use. `None`
    /// where neither is set: then all stay.
    ///
    /// # Errors
    /// When a number is 0, or greater than any that has a use.
    pub fn new(images: Option<u32>, days: Option<u32>) -> Result<Option<Self>, RuleError> {
        let within = |number: &u32, most| (1..=most).contains(number);
        match (images, days) {
            (Some(images), _) if !within(&images, MAX_KEEP_IMAGES) => {
                Err(RuleError::Images(images))
            }
            (_, Some(days)) if !within(&days, MAX_KEEP_DAYS) => Err(RuleError::Days(days)),
            (None, None) => Ok(None),
            _ => Ok(Some(Self { images, days })),
        }
    }

    /// Reads a rule of another program. `None` where it is no rule.
    ///
    /// # Errors
    /// When a number is out of bounds.
    pub fn parse(rule: RetentionRule) -> Result<Option<Self>, RuleError> {
        let set = |number| Some(number).filter(|number| *number > 0);
        Self::new(set(rule.keep_images), set(rule.keep_days))
    }

    /// The rule as a message.
    #[must_use]
    pub fn to_message(self) -> RetentionRule {
        RetentionRule {
            keep_images: self.images.unwrap_or_default(),
            keep_days: self.days.unwrap_or_default(),
        }
    }

    /// How many images of each repository stay by their number, the wanted ones among them.
    #[must_use]
    pub fn images(&self) -> Option<u32> {
        self.images
    }

    /// For how many days after its last use an image stays.
    #[must_use]
    pub fn days(&self) -> Option<u32> {
        self.days
    }

    /// For how long after its last use an image stays.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        self.days.map(|days| DAY * days)
    }
}

/// As in "nothing would go where …".
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.images, self.days) {
            (Some(images), None) => write!(f, "{images} of a repository stay"),
            (Some(images), Some(days)) => write!(
                f,
                "{images} of a repository stay, and each for {days} days after its last use"
            ),
            (None, days) => write!(
                f,
                "each stays for {} days after its last use",
                days.unwrap_or_default()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString as _;

    use super::*;

    #[test]
    fn a_rule_has_a_number_or_days_within_bounds() {
        assert_eq!(Rule::new(None, None), Ok(None));
        for (images, days) in [(0, 1), (MAX_KEEP_IMAGES + 1, 1)] {
            let error = Rule::new(Some(images), Some(days));
            assert_eq!(error, Err(RuleError::Images(images)));
        }
        for days in [0, MAX_KEEP_DAYS + 1] {
            assert_eq!(Rule::new(None, Some(days)), Err(RuleError::Days(days)));
        }
        let most = Rule::new(Some(MAX_KEEP_IMAGES), Some(MAX_KEEP_DAYS));
        let most = most.unwrap().unwrap();
        assert_eq!(most.age(), Some(Duration::from_hours(24 * 3_650)));
        assert_eq!(Rule::parse(most.to_message()), Ok(Some(most)));
        assert_eq!(Rule::parse(RetentionRule::default()), Ok(None));
    }

    #[test]
    fn a_rule_says_what_stays() {
        let said = |images, days| Rule::new(images, days).unwrap().unwrap().to_string();
        assert_eq!(said(Some(2), None), "2 of a repository stay");
        assert_eq!(
            said(Some(2), Some(14)),
            "2 of a repository stay, and each for 14 days after its last use"
        );
        assert_eq!(
            said(None, Some(14)),
            "each stays for 14 days after its last use"
        );
    }
}
