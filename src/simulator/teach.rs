//! Agora's documented semantics in plain words, for `simulate --help`.

/// What a developer needs to know before polling Agora.
pub const TEACH: &str = "\
WHAT IS SIMULATED

  Agora's Signaling (RTM) service reports who came and went through two endpoints
  of its REST API:

    GET {base}/dev/v2/project/{app_id}/rtm/vendor/user_events      Login, Logout
    GET {base}/dev/v2/project/{app_id}/rtm/vendor/channel_events   Join, Leave

  (Some old documents print rtm/hook/channel_events; that works here as well.)
  There are no query parameters, no cursor and no acknowledgement. A good answer:

    {\"result\":\"success\",\"request_id\":\"10116762670167749259\",\"events\":[
      {\"user_id\":\"user-000042\",\"type\":\"Join\",\"group_id\":\"channel-0007\",
       \"ms\":1578027418981}]}

READING IS DESTRUCTIVE

  What a GET returns is gone from the server, whether or not the answer arrives.
  A lost answer is lost data; a second consumer of the same App ID takes events
  away from the first. There is nothing to replay.

2,000 AND 1,000

  The server keeps the newest 2,000 events: a newer one replaces the oldest. One
  GET returns at most 1,000, oldest first. A full page means that more may be
  waiting. Whether the 2,000 is per region, endpoint or App ID is undocumented;
  here it is per region and endpoint of an App ID, or with --shared-buffer per
  region and App ID, where a newer event of one endpoint may replace the oldest of
  the other.

THE RATE LIMIT

  10 requests a second and App ID; here, as the cautious reading has it, over both
  endpoints and all regions together. What counts is when requests arrive, in any
  second: requests that leave evenly can arrive bunched, and ten at the end of one
  second with ten at the start of the next are twenty in a second. The eleventh is
  answered 429. So an App ID yields at most 10,000 events a second.
  Refused requests count too: slow down, or stay blocked.

REGIONS

  Events are kept by region: each is put into its home region at once and copied
  to the others 100 to 400 ms later. Taking it from one region leaves the copies
  in the others, so an event can be delivered once more, by another region. There
  is no order across regions. Several --listen make several regions.

DIALECTS

  Current documents write group_id and ms, older ones channel_id and ts
  (--old-names). Some say seconds where their examples show milliseconds. An empty
  buffer may be [], null or no key at all. `type` is an open set, keys come in any
  order, unknown ones may appear. Names may hold anything: spaces, %, quotes, {},
  nothing (--wild-names).

AUTHENTICATION

  Basic:               Authorization: Basic base64(customer_id:customer_secret)
  token with 007:      Authorization: agora token=<token>
  token with 006:      x-agora-token: <token>
                       x-agora-uid: <user the token was made for>

  Tokens have to be signed with the App Certificate of the App ID, let their user
  log in to RTM, and not be expired by Agora's clock.

STATUS CODES

  200  read `result`: anything but \"success\" handed nothing over
  400  the App ID is unknown             401  the credentials are wrong
  403  Signaling is off for the App ID   404  there is no such path
  408  try again later                   429  too many requests
  5xx  often a proxy's page in HTML

  429 may carry Retry-After, in seconds or as a date; no document promises it.
  GET /dev/v1/projects lists the projects of a customer and takes no events.

WHAT CAN GO WRONG (--fault NAME=SHARE)

  nothing taken: refused, black_hole (connections); ignored, timed_out, throttled,
                 denied (404),
                 server_error, failed, not_json
  events taken:  no_answer (reset before a byte), cut (closed early, in order),
                 reset (within the body), silent (stops, stays open), slow

THE LEDGER

  GET /simulator/ledger knows what became of every event:

    made = delivered + overwritten + torn + buffered

  delivered: sent in full; overwritten: replaced by newer ones; torn: in an answer
  that broke off before its last byte; buffered: still waiting. A consumer is
  correct when it has each delivered event exactly once and no other.

EXAMPLES

  One App ID with 200 events a second; note that curl removes events:

    agora-rtm-bridge simulate --rate 200
    curl -u ID:SECRET http://127.0.0.1:8190/dev/v2/project/APP/rtm/vendor/user_events

  Ten App IDs in two distant regions, with bursts that overflow the buffers:

    agora-rtm-bridge simulate --apps 10 --rate 500 --rtt 250ms..350ms \\
      --listen 127.0.0.1:8190 --listen 127.0.0.1:8191 --burst 5000@30s

  Many problems at once:

    agora-rtm-bridge simulate --wild-names --malformed 0.01 --cut 0.02 \\
      --fault server_error=0.05 --fault no_answer=0.01 --framing mixed

  A network so slow that the body of a full page takes 700 ms after its head:

    agora-rtm-bridge simulate --rate 6000 --split 0.2 --rtt 100ms --page-time 700ms
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::FaultKind;

    #[test]
    fn the_help_knows_every_fault() {
        for kind in FaultKind::ALL {
            assert!(TEACH.contains(kind.name()), "{kind}");
        }
    }

    #[test]
    fn the_help_fits_a_terminal() {
        let longest = TEACH.lines().map(|line| line.chars().count()).max();
        assert!(longest <= Some(88), "{longest:?}");
    }
}
