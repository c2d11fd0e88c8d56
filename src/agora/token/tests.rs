//! Checks against Agora's public sample values, and with invalid tokens.

use proptest::prelude::*;

use super::mint::{content_006, pack_006};
use super::*;

const APP_ID: &str = "970CA35de60c44645bbae8a215061b33";
const CERTIFICATE: &str = "5CFd2fd1755d40ecb72977518be15d3b";

/// Agora's sample of an AccessToken2 for RTM.
const SAMPLE_007: &str = "007eJxTYOCdJftjyTM2zxW6Xhm/5T0j5LdcUt/xYVt48fb5Mp3PX9coMFiaGzg7GpumpJoZJJuYmJmYJiUlplokGhmaGpgZJhkbu38RYIhgYmBgZABhJiBmBPM5GUpSi0viS4tTiwBZVh6A";

/// Agora's sample of an AccessToken, for RTC.
const SAMPLE_006: &str = "006970CA35de60c44645bbae8a215061b33IACV0fZUBw+72cVoL9eyGGh3Q6Poi8bgjwVLnyKSJyOXR7dIfRBXoFHlEAABAAAAR/QQAAEAAQCvKDdW";

fn order(form: TokenForm) -> Order<'static> {
    Order {
        form,
        app_id: APP_ID,
        certificate: CERTIFICATE,
        user_id: "test_user",
        issued_at: Timestamp::from_millis(1_111_111_000),
        life: Duration::from_secs(600),
        salt: 1,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn agoras_sample_of_a_007_token_is_read_and_made() {
    let sample = read(SAMPLE_007).unwrap();
    assert_eq!(sample.app_id, APP_ID);
    assert_eq!(sample.user_id(), Some("test_user"));
    assert_eq!(sample.issued_at.as_millis(), 1_111_111_000);
    assert_eq!(sample.ends_at.unwrap().as_millis(), 1_111_711_000);
    assert_eq!(
        hex(&sample.signature),
        "0d9a1df8a4e60649a82d4a68fb1f49581fb4d227b8f0b65773b79f1c89e7eb7c"
    );
    // Compressed bytes differ between programs, so compare the contents.
    assert_eq!(read(&mint(order(TokenForm::AccessToken2))), Some(sample));
}

#[test]
fn agoras_sample_of_a_006_token_is_made_byte_for_byte() {
    let content = content_006(1, 1_111_111, 1, 1_446_455_471);
    let made =
        pack_006(APP_ID, CERTIFICATE, "7d72365eb983485397e3e3f9d460bdda", "2882341273", &content);
    assert_eq!(made, SAMPLE_006);
    let sample = read(SAMPLE_006).unwrap();
    assert_eq!((sample.app_id.as_str(), sample.ends_at), (APP_ID, None), "it is not one for RTM");
}

#[test]
fn a_token_lets_in_its_user_and_nobody_else() {
    for form in [TokenForm::AccessToken2, TokenForm::AccessToken] {
        let token = read(&mint(order(form))).unwrap();
        assert!(token.lets_in("test_user") && token.is_signed_with(CERTIFICATE, "test_user"));
        assert!(!token.lets_in("somebody"), "{form:?}");
        assert!(!token.is_signed_with("another", "test_user"), "{form:?}");
        assert_eq!(token.issued_at.as_millis(), 1_111_111_000, "{form:?}");
        assert_eq!(token.ends_at.unwrap().as_millis(), 1_111_711_000, "{form:?}");
    }
    assert!(!read(SAMPLE_006).unwrap().lets_in("7d72365eb983485397e3e3f9d460bdda"), "RTC only");
}

#[test]
fn a_token_ends_with_the_shortest_of_what_it_says_and_after_a_day_at_most() {
    let life =
        |seconds| Order { life: Duration::from_secs(seconds), ..order(TokenForm::AccessToken2) };
    for (seconds, expected) in [(5, 5), (86_400, 86_400), (1_000_000, 86_400), (0, 86_400)] {
        let token = read(&mint(life(seconds))).unwrap();
        let lives = token.ends_at.unwrap().since(token.issued_at);
        assert_eq!(lives.as_secs(), expected, "{seconds}");
    }
    let endless = content_006(1, 2_000_000, LOGIN_006, 0);
    let endless = read(&pack_006(APP_ID, CERTIFICATE, "me", "", &endless)).unwrap();
    assert_eq!(endless.ends_at.unwrap().as_millis(), 2_000_000_000);
}

#[test]
fn a_token_is_not_shown() {
    let token = read(SAMPLE_007).unwrap();
    let shown = format!("{token:?} {:?}", order(TokenForm::AccessToken2));
    assert!(!shown.contains(CERTIFICATE) && !shown.contains("signature"), "{shown}");
}

#[test]
fn what_is_no_token_says_nothing() {
    let cut = |text: &str, length| text.get(..length).map(str::to_owned).unwrap();
    // Four megabytes of zeros, packed into a few kilobytes.
    let bomb = miniz_oxide::deflate::compress_to_vec_zlib(&vec![0; 1 << 22], 9);
    use base64::Engine as _;
    let bomb = base64::engine::general_purpose::STANDARD.encode(bomb);
    for text in [
        String::new(),
        "006".to_owned(),
        "007".to_owned(),
        "007!!!".to_owned(),
        "006ü".repeat(20),
        "plain".to_owned(),
        cut(SAMPLE_006, 60),
        cut(SAMPLE_007, 100),
        format!("007{bomb}"),
    ] {
        assert_eq!(read(&text), None, "{text:.40}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_without_harm(text in "(00[67])?[A-Za-z0-9+/=]{0,200}|\\PC*") {
        if let Some(token) = read(&text) {
            token.lets_in("somebody");
            token.is_signed_with("anything", "somebody");
        }
    }

    #[test]
    fn any_layout_is_read_without_harm(bytes: Vec<u8>) {
        use base64::Engine as _;
        let coded = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let packed = miniz_oxide::deflate::compress_to_vec_zlib(&bytes, 1);
        for text in [format!("007{}", coded(&packed)), format!("006{APP_ID}{}", coded(&bytes))] {
            if let Some(token) = read(&text) {
                token.lets_in("somebody");
                token.is_signed_with("anything", "somebody");
            }
        }
    }

    #[test]
    fn what_is_made_is_read(user_id in "\\PC{0,64}", salt: u32, life in 1..86_400_u64, at: u32) {
        for form in [TokenForm::AccessToken2, TokenForm::AccessToken] {
            let issued_at = Timestamp::from_millis(i64::from(at.min(u32::MAX - 200_000)) * 1_000);
            let life = Duration::from_secs(life);
            let made = mint(Order { user_id: &user_id, salt, issued_at, life, ..order(form) });
            let token = read(&made).unwrap();
            prop_assert!(token.lets_in(&user_id) && token.is_signed_with(CERTIFICATE, &user_id));
            prop_assert_eq!(token.issued_at, issued_at);
            prop_assert_eq!(token.ends_at, Some(issued_at.after(life)));
        }
    }
}
