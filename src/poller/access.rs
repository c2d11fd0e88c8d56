//! Whether an app's credentials are good, and how Agora answers them.
//!
//! The schedule decides which host to ask despite a refusal (401), and when: refusals are counted
//! per host. This module covers what belongs to the App ID: its secret, and the reason shown to the
//! operator while every host refuses it. During that time the secret's file is read every second,
//! so that a corrected one is used at once. Each app has its own `Access`.

use std::time::Duration;

use tokio::time::Instant;

use super::tokens::Tokens;
use crate::agora::{Credentials, Edition, Moment, NoCredentials, Proof, Refused, TokenEnd};
use crate::model::{AppId, Timestamp};
use crate::observe::health::{Condition, Health};

/// Interval at which an app's secret is read while every host refuses it.
const LOOK: Duration = Duration::from_secs(1);

/// A file that stays unreadable for longer is not just being rewritten.
const REWRITING: Duration = Duration::from_secs(2);

/// An externally renewed token makes `/ready` fail this long before it expires …
const SOON: Duration = Duration::from_secs(3_600);

/// … or in the last quarter (1/4) of its lifetime, if that starts later.
const SOON_SHARE: u32 = 4;

/// The credentials of an app, and whether they work.
pub(super) struct Access {
    app: AppId,
    credentials: Credentials,
    /// Number of secrets read, as last reported to the schedule.
    secrets: u64,
    /// Every host refused the secret, and none has accepted it or a newer one since.
    is_locked_out: bool,
    /// When the secret of a refused app is read next.
    look_at: Instant,
    /// The edition whose token is shown.
    shown: Edition,
    /// Whether the credentials are good.
    condition: Condition,
    /// Whether the token expires soon.
    ending: Condition,
    tokens: Tokens,
}

// === impl Access ===

impl Access {
    pub(super) fn new(
        app: &AppId,
        credentials: Credentials,
        health: &Health,
        tokens: &Tokens,
    ) -> Self {
        Self {
            app: app.clone(),
            credentials,
            secrets: 0,
            is_locked_out: false,
            look_at: Instant::now(),
            shown: Edition::default(),
            condition: health.condition("credentials", app.as_str()),
            ending: health.condition("token", app.as_str()),
            tokens: tokens.clone(),
        }
    }

    /// Reads the secret of an app that every host refuses, at most once a second.
    pub(super) fn look(&mut self, now: Instant) {
        if now >= self.look_at {
            self.look_at = now + LOOK;
            self.credentials.look(now);
        }
    }

    /// When the secret is read next.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Whether the secret changed since the last call, so that refusals of the old one no longer
    /// count.
    pub(super) fn has_changed(&mut self) -> bool {
        let before = std::mem::replace(&mut self.secrets, self.credentials.secrets());
        before != self.secrets
    }

    /// The credentials for a request that leaves now.
    pub(super) fn proof(&mut self, now: Moment) -> Result<Proof, NoCredentials> {
        let proof = self.credentials.proof(now);
        match (&proof, self.credentials.unreadable()) {
            (Err(error), _) => self.condition.failing(error),
            (Ok(_), Some((since, error))) if now.monotonic >= since + REWRITING => {
                let kept = "what was read last is used as long as it is accepted";
                self.condition.failing(format_args!("{error}; {kept}"));
            }
            // The reason for a lockout includes it.
            (Ok(_), _) if !self.is_locked_out => {
                if let Some(suspicion) = self.credentials.suspicion() {
                    self.condition.failing(suspicion);
                }
            }
            (Ok(_), _) => {}
        }
        self.show(now.wall);
        proof
    }

    /// A host accepted a request with credentials of this edition.
    pub(super) fn accepted(&mut self, edition: Edition, host: &str) {
        if self.credentials.accepted(edition, host) {
            self.is_locked_out = false;
            if self.credentials.unreadable().is_none() {
                self.condition.ok();
            }
        }
    }

    /// A host refused a request with credentials of this edition. Returns whether the next request
    /// carries different ones.
    pub(super) fn refused(&mut self, edition: Edition, host: &str, now: Instant) -> Refused {
        self.credentials.refused(edition, host, now)
    }

    /// Reports that every host refuses the credentials, with the text of the last refusal.
    pub(super) fn locked_out(&mut self, host: &str, said: &str, now: Instant) {
        self.is_locked_out = true;
        let remedy = self.credentials.remedy();
        self.condition.failing(format_args!(
            "Agora refuses the credentials of this app: {host}: {said}: {remedy}"
        ));
        self.look_at = now + LOOK;
    }

    /// Shows when the token expires, and reports it when that is soon.
    fn show(&mut self, now: Timestamp) {
        let end = self.credentials.token_end();
        if self.shown != self.credentials.edition() {
            self.shown = self.credentials.edition();
            self.tokens.show(&self.app, end);
        }
        let Some(TokenEnd { at: Some(at), life, made_here: false }) = end else {
            return self.ending.ok();
        };
        let soon = life.map_or(SOON, |life| SOON.min(life / SOON_SHARE));
        if at.since(now) > soon {
            return self.ending.ok();
        }
        let (place, ends) = (self.credentials.place(), if at > now { "ends" } else { "ended" });
        self.ending.failing(format_args!("the token of {place} {ends} at {at}: renew it"));
    }
}
