//! The result of one check, with a remedy.

use std::fmt;
use std::fmt::Display;

use serde::Serialize;

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The verdict.
    pub verdict: Severity,
    /// The thing that was checked.
    pub subject: String,
    /// The observation.
    pub says: String,
    /// The remedy, if one is needed.
    pub remedy: Option<String>,
}

/// The verdict of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// No problem.
    Ok,
    /// It works, but may cause trouble later.
    Warning,
    /// It doesn't work.
    Failed,
}

// === impl Finding ===

impl Finding {
    /// A finding without a problem.
    pub fn ok(subject: impl Into<String>, says: impl Display) -> Self {
        Self::of(Severity::Ok, subject, says, None)
    }

    /// A finding that works but may cause trouble later.
    pub fn warning(
        subject: impl Into<String>,
        says: impl Display,
        remedy: impl Into<String>,
    ) -> Self {
        Self::of(Severity::Warning, subject, says, Some(remedy.into()))
    }

    /// A finding that doesn't work.
    pub fn failed(subject: impl Into<String>, says: impl Display, remedy: Option<&str>) -> Self {
        Self::of(Severity::Failed, subject, says, remedy.map(str::to_owned))
    }

    /// A finding with the given verdict.
    pub fn of(
        verdict: Severity,
        subject: impl Into<String>,
        says: impl Display,
        remedy: Option<String>,
    ) -> Self {
        Self { verdict, subject: subject.into(), says: says.to_string(), remedy }
    }
}

impl Display for Finding {
    /// One line, without the verdict, which the caller shows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.says)?;
        match &self.remedy {
            Some(remedy) => write!(f, " → {remedy}"),
            None => Ok(()),
        }
    }
}
