//! The odd answers, and what has to become of each.

use agora_rtm_bridge::agora::LARGEST_BODY;
use miniz_oxide::deflate::{compress_to_vec, compress_to_vec_zlib};

use super::Outcome;

/// An odd answer.
pub(super) struct Case {
    /// As the table of `docs/answers.md` calls it.
    pub(super) name: &'static str,
    /// Head and body, as they are sent.
    pub(super) answer: Vec<u8>,
    /// Whether a reset follows, and no end in order.
    pub(super) reset: bool,
    events: usize,
    dead_letters: Vec<Vec<u8>>,
    gaps: usize,
}

/// Statuses without a page, given for ever: readiness has to explain each.
pub(super) const STATUSES: [u16; 11] = [302, 400, 401, 403, 404, 407, 408, 418, 429, 500, 503];

pub(super) fn app_of_status(status: u16) -> String {
    format!("status{status}")
}

const A: &str = r#"{"user_id":"a","type":"Login","ms":1578027420761}"#;
const B: &str = r#"{"user_id":"b","type":"Logout","ms":1578027420762}"#;

// === impl Case ===

impl Case {
    fn new(name: &'static str, answer: impl Into<Vec<u8>>) -> Self {
        let (answer, reset) = (answer.into(), false);
        Self { name, answer, reset, events: 0, dead_letters: Vec::new(), gaps: 0 }
    }

    /// A body that comes whole with status 200.
    fn body(name: &'static str, body: impl AsRef<[u8]>) -> Self {
        Self::new(name, answer("200 OK", body))
    }

    /// The elements of a page that comes whole.
    fn page(name: &'static str, elements: &[&str]) -> Self {
        Self::body(name, page(elements))
    }

    fn events(self, events: usize) -> Self {
        Self { events, ..self }
    }

    fn dead(self, dead_letters: &[impl AsRef<[u8]>]) -> Self {
        let mut dead_letters: Vec<_> = dead_letters.iter().map(|it| it.as_ref().to_vec()).collect();
        dead_letters.sort();
        Self { dead_letters, ..self }
    }

    fn gap(self) -> Self {
        Self { gaps: 1, ..self }
    }

    fn reset(self) -> Self {
        Self { reset: true, ..self }
    }

    /// The App ID that gets the answer.
    pub(super) fn app(&self) -> String {
        let legal = |c: &char| c.is_ascii_alphanumeric() || *c == ' ';
        self.name.chars().filter(legal).collect::<String>().to_lowercase().replace(' ', "-")
    }

    pub(super) fn expected(&self) -> (String, Outcome) {
        let Self { events, gaps, .. } = *self;
        (self.app(), Outcome { events, dead_letters: self.dead_letters.clone(), gaps })
    }
}

fn answer(status: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    [format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body]
        .concat()
}

fn page(elements: &[&str]) -> String {
    format!(r#"{{"result":"success","request_id":"1","events":[{}]}}"#, elements.join(","))
}

/// Every kind.
pub(super) fn cases() -> Vec<Case> {
    [bodies(), objects(), compressed(), elements(), sizes(), heads(), cuts()]
        .into_iter()
        .flatten()
        .collect()
}

/// Bodies that are not a page, or not quite.
fn bodies() -> Vec<Case> {
    let html = "<html><body>Please log in</body></html>";
    let utf_16: Vec<u8> = page(&[A]).encode_utf16().flat_map(u16::to_le_bytes).collect();
    let object = format!(r#"{{"result":"success","events":{A}}}"#);
    let two = format!("{}{}", page(&[A]), page(&[B]));
    vec![
        Case::body("byte order mark", format!("\u{feff}{}", page(&[A, B]))).events(2),
        Case::body("UTF-16", &utf_16).dead(&[&utf_16]),
        Case::body("proxy's HTML", html).dead(&[html]),
        Case::body("`events` an object", object).dead(&[A]),
        Case::body("`events` escaped", page(&[A]).replace("events", r"\u0065vents")).events(1),
        Case::body("`events` twice", format!(r#"{{"events":[{A}],"events":[{B}]}}"#)).events(2),
        Case::body("events, then none", format!(r#"{{"events":[{A}],"events":[]}}"#)).events(1),
        Case::body("two pages in one", &two).events(1).dead(&[&two]),
        Case::body("array", format!("[{A}]")).dead(&[format!("[{A}]")]),
        Case::body("result failed with events", page(&[A]).replace("success", "failed")).events(1),
        Case::body("empty 200", "").gap(),
        Case::body("white space", " \r\n\t".repeat(100)).gap(),
    ]
}

/// Objects without an element: empty is only what says so.
fn objects() -> Vec<Case> {
    let data = format!(r#"{{"result":"success","data":{{"events":[{A}]}}}}"#);
    let capital = format!(r#"{{"Events":[{A}]}}"#);
    let beside = format!(r#"{{"result":"success","events":[],"user_events":[{A}]}}"#);
    let failure = r#"{"data":null,"error":true,"errorCode":500,"message":"server error"}"#;
    let large = failure.replace("server", &"x".repeat(600));
    vec![
        Case::body("events in `data`", &data).dead(&[&data]),
        Case::body("`Events`", &capital).dead(&[&capital]),
        Case::body("events beside none", &beside).dead(&[&beside]),
        Case::body("Agora's error", failure),
        Case::body("Agora's error, large", &large).dead(&[&large]),
        Case::body("failed and none", page(&[]).replace("success", "failed")),
        Case::body("empty object", "{}"),
        Case::body("`events` null", r#"{"events":null}"#),
    ]
}

/// Bodies that came compressed, although that is not asked for.
fn compressed() -> Vec<Case> {
    let page = page(&[A, B]);
    let encoded = |encoding: &str, body: &[u8]| {
        answer(&format!("200 OK\r\nContent-Encoding: {encoding}"), body)
    };
    let (zlib, raw) =
        (compress_to_vec_zlib(page.as_bytes(), 6), compress_to_vec(page.as_bytes(), 6));
    // Stored as it is: so where it is cut is known.
    let stored = gzip(page.as_bytes(), 0);
    let cut = &stored[..stored.len() - 8 - 20];
    let cut = [b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", cut].concat();
    let mut damaged = gzip(page.as_bytes(), 6);
    let end = damaged.len() - 1;
    damaged[end] ^= 1;
    let blank = " ".repeat(LARGEST_BODY);
    let bomb = gzip(format!(r#"{{"events":[{A},{blank}{B}]}}"#).as_bytes(), 6);
    let brotli = b"\x0b\x02\x80{}\x03";
    vec![
        Case::new("gzip", encoded("gzip", &gzip(page.as_bytes(), 6))).events(2),
        Case::body("gzip, not announced", gzip(page.as_bytes(), 6)).events(2),
        Case::new("zlib", encoded("deflate", &zlib)).events(2),
        Case::body("zlib, not announced", &zlib).events(2),
        Case::new("raw deflate", encoded("deflate", &raw)).events(2),
        Case::new("gzip twice", encoded("gzip, gzip", &gzip(&gzip(page.as_bytes(), 6), 6)))
            .events(2),
        Case::new("gzip in name only", encoded("gzip", page.as_bytes())).events(2),
        Case::new("gzip of an empty page", encoded("gzip", &gzip(br#"{"events":[]}"#, 6))),
        Case::new("gzip, cut", cut).events(1).gap(),
        Case::body("gzip, wrong checksum", &damaged).events(2).dead(&[&damaged]),
        Case::body("gzip of too much", &bomb).events(1).dead(&[&bomb]).gap(),
        Case::new("brotli", encoded("br", brotli)).dead(&[brotli]),
        Case::new("brotli in name only", encoded("br", page.as_bytes())).events(2),
    ]
}

fn gzip(text: &[u8], level: u8) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("it is not that long");
    let trailer = [crc32fast::hash(text), length].map(u32::to_le_bytes);
    let head: &[u8] = b"\x1f\x8b\x08\0\0\0\0\0\0\xff";
    [head, &compress_to_vec(text, level), trailer.as_flattened()].concat()
}

/// Elements that are not an event, or not quite, in a page that is one.
fn elements() -> Vec<Case> {
    let with = |time: &str| format!(r#"{{"user_id":"x","type":"T","ms":{time}}}"#);
    let surrogate = r#"{"user_id":"\ud800","type":"T","ms":1578027420761}"#;
    let bad = [br#"{"user_id":""#, &b"\xff\xfe"[..], br#"","type":"T","ms":1}"#].concat();
    let bad_page = [br#"{"events":["#, &bad[..], b",", A.as_bytes(), b"]}"].concat();
    let kept = |odd: &str| A.replace('}', &format!(r#","odd":{odd}}}"#));
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let (float, exponent) = (with("1578027420761.0"), with("1.5e12"));
    let large = with("18446744073709551616");
    let number = "9".repeat(80);
    vec![
        Case::body("invalid UTF-8", bad_page).events(1).dead(&[bad]),
        Case::page("lone surrogate in a name", &[surrogate, A]).events(1).dead(&[surrogate]),
        Case::page("lone surrogate elsewhere", &[&kept(r#""\ud800""#)]).events(1),
        Case::page("duplicate keys", &[&A.replace('{', r#"{"user_id":"first","#)]).events(1),
        Case::page("time as a text", &[&with(r#""1578027420761""#)]).events(1),
        Case::page("floats", &[&float, A, &exponent]).events(1).dead(&[&float, &exponent]),
        Case::page("time beyond 64 bits", &[&large, A]).events(1).dead(&[&large]),
        Case::page("number beyond 64 bits", &[&kept(&number)]).events(1),
        Case::page("deep nesting", &[&kept(&deep), B]).events(2),
        Case::page("scalars", &["7", A, "null", "\"x\""]).events(1).dead(&["7", "null", "\"x\""]),
        Case::page("stray bracket", &[A, "}", B]).events(2).dead(&["}"]),
        Case::body("missing commas", format!(r#"{{"events":[{A}{B}]}}"#)).events(2),
    ]
}

/// More than anybody sends.
fn sizes() -> Vec<Case> {
    let small = |n: usize| format!(r#"{{"user_id":"{n}","type":"T","ms":1578027420761}}"#);
    let elements: Vec<String> = (0..100_000).map(small).collect();
    let note = "x".repeat(10_000);
    let large =
        |n: usize| format!(r#"{{"user_id":"{n}","type":"T","ms":1578027420761,"odd":"{note}"}}"#);
    let large: Vec<String> = (0..1_200).map(large).collect();
    let begin = r#"{"events":["#;
    let body = format!("{begin}{}]}}", large.join(","));
    let mut end = begin.len();
    let fits = |element: &&String| {
        end += element.len();
        let fits = end <= LARGEST_BODY;
        end += 1;
        fits
    };
    let kept = large.iter().take_while(fits).count();
    let blank = format!("{{{}", " ".repeat(LARGEST_BODY + 1_000_000));
    vec![
        Case::page("100000 elements", &elements.iter().map(String::as_str).collect::<Vec<_>>())
            .events(100_000),
        Case::body("beyond the bound", body).events(kept).gap(),
        Case::body("endless white space", blank).gap(),
    ]
}

/// Heads that are not as usual.
fn heads() -> Vec<Case> {
    let page = page(&[A]);
    let flood: String = (0..900).map(|n| format!("X-{n}: {}\r\n", "y".repeat(200))).collect();
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(1_000_000));
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".as_bytes();
    vec![
        Case::new("header flood", answer(&format!("200 OK\r\n{flood}X: y"), &page)).events(1),
        Case::new("head without end", endless).gap(),
        Case::new("1xx before it", [early, &answer("200 OK", &page)[..]].concat()).events(1),
        Case::new("HTML as content type", answer("200 OK\r\nContent-Type: text/html", &page))
            .events(1),
        Case::new("204", answer("204 No Content", "")),
        Case::new("206", answer("206 Partial Content", &page)).events(1),
        Case::new("301", answer("301 Moved\r\nLocation: http://127.0.0.1:1/", "")),
        Case::new("301 with a page", answer("301 Moved\r\nLocation: /", &page)).events(1),
        Case::new("401 with a page", answer("401 No", &page)).events(1),
        Case::new("429 with a page", answer("429 No", &page)).events(1),
        Case::new("503 with a page", answer("503 No", &page)).events(1),
    ]
}

/// Answers that break off.
fn cuts() -> Vec<Case> {
    let page = page(&[A, B]);
    let cut = &page[..page.len() - 10];
    let torn = &cut[cut.len() - (B.len() - 8)..];
    let announced = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nContent-Length: 9999\r\n\r\n{body}")
    };
    let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9999\r\n{cut}");
    let until_close = format!("HTTP/1.1 200 OK\r\n\r\n{cut}");
    vec![
        Case::new("cut by length", announced("200 OK", cut)).events(1).gap(),
        Case::new("cut in chunks", chunked).events(1).gap(),
        Case::new("cut by a close", until_close).events(1).dead(&[torn]).gap(),
        Case::new("cut behind the events", announced("200 OK", &page[..page.len() - 1])).events(2),
        Case::new("cut before a byte", announced("200 OK", "")).gap(),
        Case::new("cut under 503", announced("503 No", r#"{"result":"success","#)).gap(),
        Case::new("cut HTML under 503", announced("503 No", "<html><bo")),
        Case::new("no answer", "").gap(),
        Case::new("reset", "").gap().reset(),
    ]
}
