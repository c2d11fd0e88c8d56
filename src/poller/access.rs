//! Whether an app may ask: its credentials, and what Agora says to them.
//!
//! A refusal (401) holds for the App ID and not for a feed: from then on the app asks once a minute
//! in all, until a request is accepted or the secret changes. A file is looked at each second, so
//! that a corrected one is used at once. Other apps have an `Access` of their own.

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

/// Between two requests of an app whose credentials are refused.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// How often the secret of such an app is looked at.
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
    /// What Agora said when it refused, and until when nothing is asked.
    refused: Option<(String, Instant)>,
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
            refused: None,
            look_at: Instant::now(),
            shown: Edition::default(),
            condition: health.condition("credentials", app.as_str()),
            ending: health.condition("token", app.as_str()),
            tokens: tokens.clone(),
        }
    }

    /// Until when nothing may be asked, or decided anew; `None` where the app may ask.
    pub(super) fn wait(&mut self, now: Instant) -> Option<Instant> {
        let (_, until) = self.refused.as_ref()?;
        let until = *until;
        if now >= self.look_at {
            self.look_at = now + LOOK;
            if self.credentials.look(now) {
                // The reason stays until a request is accepted.
                self.refused = None;
                return None;
            }
        }
        (now < until).then(|| until.min(self.look_at))
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
            (Ok(_), _) => {}
        }
        self.show(now.wall);
        proof
    }

    /// Notes that a request has left.
    pub(super) fn asked(&mut self, now: Instant) {
        if let Some((_, until)) = &mut self.refused {
            *until = now + ASK_AGAIN;
        }
    }

    /// Notes that Agora took what a request of this edition carried.
    pub(super) fn accepted(&mut self, edition: Edition) {
        if self.credentials.accepted(edition) {
            self.refused = None;
            if self.credentials.unreadable().is_none() {
                self.condition.ok();
            }
        }
    }

    /// Notes that Agora refused it, and with what words.
    pub(super) fn refused(&mut self, edition: Edition, said: &str, now: Instant) {
        if self.credentials.refused(edition, now) == Refused::Outdated {
            return;
        }
        let remedy = self.credentials.remedy();
        let reason = format!("Agora refuses the credentials of this app: {said}: {remedy}");
        self.condition.failing(&reason);
        self.look_at = now + LOOK;
        self.refused = Some((reason, now + ASK_AGAIN));
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
