//! Servers that close a connection at the moment at which it is used again.
//!
//! Waits are lower bounds: a machine that is slow makes them longer, which changes nothing.

use tokio::time::Instant;

use super::*;

/// No shorter time is taken for a server's.
const IDLE: Duration = Duration::from_millis(250);

async fn body_of_answer(http: &Http, request: Request) -> Result<String, Reply> {
    match http.ask(request).await {
        Reply::Answered(raw) => Ok(String::from_utf8_lossy(&raw.body).into_owned()),
        reply => Err(reply),
    }
}

#[tokio::test]
async fn a_host_that_closes_idle_connections_costs_one_answer_and_not_one_after_the_other() {
    for how in [End::Close, End::Reset] {
        let server = Server::start(move || Act::AnswerAndEndOnNext { how }).await;
        let http = transport();
        let begin = Instant::now();
        assert_eq!(body_of_answer(&http, server.request(0)).await.unwrap(), path(0));
        sleep(IDLE).await;
        let died = http.ask(server.request(1)).await;
        let Reply::Lost(error) = died else { panic!("{how:?}: {died:?}") };
        assert!(error.to_string().contains("had been idle for"), "{how:?}: {error}");
        // At least as long as the connection had been idle.
        let wait = begin.elapsed();
        for number in 2..6 {
            let answer = body_of_answer(&http, server.request(number)).await;
            assert_eq!(answer.unwrap_or_else(|lost| panic!("{how:?}: {lost:?}")), path(number));
            sleep(wait).await;
        }
        assert_eq!(locked(&server.seen).connections, 5, "{how:?}: none was used twice, but one");
    }
}

#[tokio::test]
async fn a_host_that_announces_when_it_closes_idle_connections_costs_no_answer() {
    let server = Server::start(|| Act::AnnounceAndEndOnNext { seconds: 1 }).await;
    let http = transport();
    for number in 0..4 {
        let answer = body_of_answer(&http, server.request(number)).await;
        assert_eq!(answer.unwrap_or_else(|lost| panic!("{lost:?}")), path(number));
        sleep(Duration::from_millis(800)).await;
    }
}

#[tokio::test]
async fn what_one_host_teaches_is_not_held_against_another() {
    let closing = Server::start(|| Act::AnnounceAndEndOnNext { seconds: 0 }).await;
    let keeping = Server::start(|| Act::Answer).await;
    let http = transport();
    for number in 0..4 {
        for server in [&closing, &keeping] {
            let answer = body_of_answer(&http, server.request(number)).await;
            assert_eq!(answer.unwrap_or_else(|lost| panic!("{lost:?}")), path(number));
        }
    }
    let connections = |server: &Server| locked(&server.seen).connections;
    assert_eq!((connections(&closing), connections(&keeping)), (4, 1));
}
