//! What librdkafka's errors mean for the bridge: one table for every client of it.
//!
//! | class | codes, for example | what happens |
//! |---|---|---|
//! | retriable | leader away, too few in-sync replicas, coordinator moving | librdkafka retries: events for the life of a transaction, pages for ever |
//! | [`Failure::Unavailable`] | no broker, no coordinator, no answer in time | claims again; pages wait in the journal |
//! | [`Failure::Fenced`] | producer fenced, invalid epoch | stays off while the other one is alive |
//! | [`Failure::Refused`] | not authorised, no such topic | claims again, after checking and creating topics |
//! | [`Failure::Unfit`] | record too large, a time or a policy that the topic does not take | page by page, and the page that is refused alone is set aside |
//! | [`Failure::Broken`] | abortable, fatal, outcome of the commit unknown, transactional id forgotten, records timed out | a new client claims, which ends the open transaction; the memory has the outcome |
//!
//! `docs/kafka.md` says the same for operators.

use rdkafka::error::{KafkaError as ClientError, RDKafkaErrorCode as Code};

use crate::kafka::Failure;

/// What an error means.
pub(super) fn failure_of(error: &ClientError) -> Failure {
    error.rdkafka_error_code().map_or(Failure::Broken, failure_of_code)
}

fn failure_of_code(code: Code) -> Failure {
    match code {
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch => Failure::Fenced,
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::SaslAuthenticationFailed
        | Code::Authentication
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::UnknownTopicOrPartition
        | Code::InvalidTopic => Failure::Refused,
        Code::MessageSizeTooLarge
        | Code::MessageBatchTooLarge
        | Code::InvalidTimestamp
        | Code::InvalidRecord
        | Code::PolicyViolation => Failure::Unfit,
        Code::OperationTimedOut
        | Code::RequestTimedOut
        | Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::NotCoordinator
        | Code::CoordinatorNotAvailable
        | Code::CoordinatorLoadInProgress => Failure::Unavailable,
        _ => Failure::Broken,
    }
}

/// Errors that a consumer reports and gets over by itself.
pub(super) fn is_passing(error: &ClientError) -> bool {
    failure_of(error) == Failure::Unavailable
}

/// Whether a record was not taken, or thrown away, because its transaction had failed before. The
/// attempt to commit it fails then, and with the reason.
pub(super) fn is_a_consequence(error: &ClientError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(Code::PurgeQueue | Code::PurgeInflight | Code::State | Code::Fatal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_errors_has_its_road() {
        for (code, failure) in [
            (Code::AllBrokersDown, Failure::Unavailable),
            (Code::OperationTimedOut, Failure::Unavailable),
            (Code::CoordinatorLoadInProgress, Failure::Unavailable),
            (Code::ProducerFenced, Failure::Fenced),
            (Code::TopicAuthorizationFailed, Failure::Refused),
            (Code::UnknownTopicOrPartition, Failure::Refused),
            (Code::MessageSizeTooLarge, Failure::Unfit),
            (Code::InvalidTimestamp, Failure::Unfit),
            (Code::PolicyViolation, Failure::Unfit),
            // A transactional id that the broker forgot, after seven days without a transaction.
            (Code::InvalidProducerIdMapping, Failure::Broken),
            (Code::MessageTimedOut, Failure::Broken),
            (Code::InvalidTransactionalState, Failure::Broken),
            (Code::OutOfOrderSequenceNumber, Failure::Broken),
            (Code::Fatal, Failure::Broken),
        ] {
            assert_eq!(failure_of(&ClientError::Global(code)), failure, "{code:?}");
        }
    }
}
