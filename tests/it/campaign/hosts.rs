//! What goes wrong at Agora's hosts: the one that hands over, and another one that never does.

use agora_rtm_bridge::simulator::{Fault, FaultKind, Script};

use super::kind::Refusal;
use crate::support::agora::Agora;

/// The faults of both.
#[derive(Default)]
pub(super) struct Hosts {
    /// Refuses whatever it is asked. Not there where no kind of the plan needs it.
    other: Option<Agora>,
    refusal: Option<Refusal>,
    is_faulty: bool,
}

/// Agora's faults, with the share of requests that each strikes.
const FAULTS: [(FaultKind, f64); 9] = [
    (FaultKind::Cut, 0.05),
    (FaultKind::Reset, 0.05),
    (FaultKind::Silent, 0.03),
    (FaultKind::NoAnswer, 0.05),
    (FaultKind::Slow, 0.05),
    (FaultKind::TimedOut, 0.03),
    (FaultKind::Throttled, 0.02),
    (FaultKind::ServerError, 0.03),
    (FaultKind::Failed, 0.03),
];

// === impl Hosts ===

impl Hosts {
    /// With another host, which refuses from the first request on.
    pub(super) fn with_another(script: &Script) -> Self {
        let faults = vec![Fault::new(FaultKind::Denied)];
        let other = Agora::start(Script { faults, ..script.clone() });
        Self { other: Some(other), ..Self::default() }
    }

    /// The configuration with the other host behind the one that hands over.
    pub(super) fn written_into(&self, config: String, agora: &Agora) -> String {
        let Some(other) = &self.other else { return config };
        let [one, other] = [agora, other].map(|it| format!("\"http://{}\"", it.address(0)));
        config.replace(&one, &format!("{one}, {other}"))
    }

    /// From now on requests are struck by many faults, or no longer.
    pub(super) fn set_faulty(&mut self, is_faulty: bool, agora: &Agora) {
        self.is_faulty = is_faulty;
        self.apply(agora);
    }

    /// From now on the host refuses, or no longer. The other one always does.
    pub(super) fn set_refusal(&mut self, refusal: Option<Refusal>, agora: &Agora) {
        self.refusal = refusal;
        if let (Some(Refusal { other_host, .. }), Some(other)) = (refusal, &self.other) {
            other.set_faults(vec![Fault::new(FaultKind::Denied).status(other_host)]);
        }
        self.apply(agora);
    }

    fn apply(&self, agora: &Agora) {
        let refusal = self.refusal.map(|Refusal { status, endpoint, .. }| {
            let kind = if status < 500 { FaultKind::Denied } else { FaultKind::ServerError };
            Fault { endpoint, ..Fault::new(kind).status(status) }
        });
        let faults = FAULTS.iter().filter(|_| self.is_faulty);
        let faults = faults.map(|(kind, share)| Fault::new(*kind).share(*share));
        agora.set_faults(refusal.into_iter().chain(faults).collect());
    }
}
