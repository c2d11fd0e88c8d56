//! Whether an app's credentials are good, and what Agora says to them.
//!
//! Which host is asked in spite of a refusal (401), and when, the schedule decides: a refusal is held
//! against a host. Here is what belongs to the App ID: its secret, and the reason that a person reads
//! while every host refuses it. A file is looked at each second meanwhile, so that a corrected one is
//! used at once. Other apps have an `Access` of their own.

use std::time::Duration;

use tokio::time::Instant;

use super::tokens::Tokens;
use crate::agora::Credentials;
use crate::agora::Edition;
use crate::agora::Moment;
use crate::agora::NoCredentials;
use crate::agora::Proof;
use crate::agora::Refused;
use crate::agora::TokenEnd;
use crate::model::AppId;
use crate::model::Timestamp;
use crate::observe::health::Condition;
use crate::observe::health::Health;

/// How often the secret of an app is looked at while every host refuses it.
const LOOK: Duration = Duration::from_secs(1);

/// A file that can't be read for so long is not just being rewritten.
const REWRITING: Duration = Duration::from_secs(2);

/// A token that others have to renew is a reason not to be ready so long before its end …
const SOON: Duration = Duration::from_secs(3_600);

/// … or after all but this share of its life, if that comes later.
const SOON_SHARE: u32 = 4;

/// The right of an app to ask.
pub(super) struct Access {
    app: AppId,
    credentials: Credentials,
    /// Secrets that were read, as far as the schedule knows.
    secrets: u64,
    /// Every host refused the secret, and none has accepted it or another one since.
    is_locked_out: bool,
    /// When the secret of a refused app is looked at next.
    look_at: Instant,
    /// The edition whose token is shown.
    shown: Edition,
    /// Whether the credentials are good.
    condition: Condition,
    /// Whether the token ends soon.
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

    /// Looks at the secret of an app that every host refuses, once a second.
    pub(super) fn look(&mut self, now: Instant) {
        if now >= self.look_at {
            self.look_at = now + LOOK;
            self.credentials.look(now);
        }
    }

    /// When the secret is looked at next.
    pub(super) fn look_at(&self) -> Instant {
        self.look_at
    }

    /// Whether there is another secret than at the last call: refusals of the former no longer count.
    pub(super) fn has_changed(&mut self) -> bool {
        let before = std::mem::replace(&mut self.secrets, self.credentials.secrets());
        before != self.secrets
    }

    /// What a request has to carry that leaves now.
    pub(super) fn proof(&mut self, now: Moment) -> Result<Proof, NoCredentials> {
        let proof = self.credentials.proof(now);
        match (&proof, self.credentials.unreadable()) {
            (Err(error), _) => self.condition.failing(error),
            (Ok(_), Some((since, error))) if now.monotonic >= since + REWRITING => {
                let kept = "what was read last is used as long as it is accepted";
                self.condition.failing(format_args!("{error}; {kept}"));
            }
            // The reason of a lockout says it, too.
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

    /// Notes that a host took what a request of this edition carried.
    pub(super) fn accepted(&mut self, edition: Edition, host: &str) {
        if self.credentials.accepted(edition, host) {
            self.is_locked_out = false;
            if self.credentials.unreadable().is_none() {
                self.condition.ok();
            }
        }
    }

    /// Notes that a host refused what a request of this edition carried. Whether the next request
    /// carries something else.
    pub(super) fn refused(&mut self, edition: Edition, host: &str, now: Instant) -> Refused {
        self.credentials.refused(edition, host, now)
    }

    /// Says that every host refuses the credentials, and with what words the last one did.
    pub(super) fn locked_out(&mut self, host: &str, said: &str, now: Instant) {
        self.is_locked_out = true;
        let remedy = self.credentials.remedy();
        self.condition.failing(format_args!(
            "Agora refuses the credentials of this app: {host}: {said}: {remedy}"
        ));
        self.look_at = now + LOOK;
    }

    /// Shows when the token ends, and says so when that is soon.
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
