//! What was found of one thing, and what to do about it.

use std::fmt;
use std::fmt::Display;

use serde::Serialize;

/// One line of the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How it is.
    pub verdict: Verdict,
    /// What was looked at.
    pub subject: String,
    /// What was seen.
    pub says: String,
    /// What to do, where something is to be done.
    pub remedy: Option<String>,
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Well.
    Ok,
    /// It works, and somebody may regret it.
    Warning,
    /// It does not work.
    Failed,
}

// === impl Finding ===

impl Finding {
    /// It is well.
    pub fn ok(subject: impl Into<String>, says: impl Display) -> Self {
        Self::of(Verdict::Ok, subject, says, None)
    }

    /// It works, and somebody may regret it.
    pub fn warning(
        subject: impl Into<String>,
        says: impl Display,
        remedy: impl Into<String>,
    ) -> Self {
        Self::of(Verdict::Warning, subject, says, Some(remedy.into()))
    }

    /// It does not work.
    pub fn failed(subject: impl Into<String>, says: impl Display, remedy: Option<&str>) -> Self {
        Self::of(Verdict::Failed, subject, says, remedy.map(str::to_owned))
    }

    /// As the verdict says.
    pub fn of(
        verdict: Verdict,
        subject: impl Into<String>,
        says: impl Display,
        remedy: Option<String>,
    ) -> Self {
        Self { verdict, subject: subject.into(), says: says.to_string(), remedy }
    }
}

impl Display for Finding {
    /// One line: the verdict is the caller's to show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.says)?;
        match &self.remedy {
            Some(remedy) => write!(f, " → {remedy}"),
            None => Ok(()),
        }
    }
}
