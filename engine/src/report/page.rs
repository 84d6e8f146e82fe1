//! What our HTML pages share: one file each, no requests, light and dark.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A whole page. `title` is text; `body` is HTML, and so is `script`, which may be empty.
pub fn document(title: &str, body: &str, script: &str) -> String {
    let script = if script.is_empty() { String::new() } else { format!("<script>{script}</script>\n") };
    // The policy makes sure of what is meant: nothing is loaded, nothing is sent.
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n{script}</body>\n</html>\n",
        escape(title)
    )
}

/// Text as HTML, for elements and quoted attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // HTML has no way to say it.
            '\0' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// An image inside the page; `None` where the bytes are no JPEG, PNG, WebP or GIF, told by how they begin.
pub fn data_uri(bytes: &[u8]) -> Option<String> {
    let kind = match bytes {
        [0xff, 0xd8, 0xff, ..] => "jpeg",
        [0x89, b'P', b'N', b'G', ..] => "png",
        [b'G', b'I', b'F', b'8', ..] => "gif",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "webp",
        _ => return None,
    };
    Some(format!("data:image/{kind};base64,{}", STANDARD.encode(bytes)))
}

/// A number with four digits that count: `0.1235`, `12.35`, `1,234,567`, `1.23e-5`.
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return if value.is_nan() { "NaN".into() } else { format!("{}∞", if value < 0.0 { "−" } else { "" }) };
    }
    let size = value.abs();
    if size == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e9).contains(&size) {
        let text = format!("{value:.2e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{exponent}", without_zeros(digits)).replace('-', "−");
    }
    if size >= 999.95 {
        let digits = format!("{size:.0}");
        let mut out = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                out.push(',');
            }
            out.push(digit);
        }
        return if value < 0.0 { format!("−{out}") } else { out };
    }
    let decimals = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.decimals$}");
    without_zeros(&text).replace('-', "−")
}

/// Without those at the end of a fraction.
fn without_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// Colours have a contrast of at least 4.5:1 for text and 3:1 for lines, in both schemes.
const STYLE: &str = "
:root{--page:#f6f6f3;--card:#fff;--ink:#14130f;--soft:#55534c;--line:#e3e2dc;--axis:#b9b7ae;--accent:#1f5fbf;
--good:#0b7a3e;--bad:#b3261e;--good-back:#e3f4e9;--bad-back:#fbe9e7;--warn-back:#fdf3d7;
--s0:#2a6fd0;--s1:#c2541b;--s2:#128a5c;--s3:#7d4fc4;--shadow:0 1px 2px rgb(0 0 0/.06)}
@media(prefers-color-scheme:dark){:root{--page:#161615;--card:#20201f;--ink:#f4f3ee;--soft:#b5b3a9;--line:#363632;
--axis:#5c5b54;--accent:#8ab4f8;--good:#6fd39a;--bad:#ff9a90;--good-back:#173524;--bad-back:#3d1f1c;--warn-back:#3a3115;
--s0:#5b9bf0;--s1:#e8824b;--s2:#35b683;--s3:#ae8df0;--shadow:none}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,
'Noto Sans','Liberation Sans',sans-serif}
main,header,footer{max-width:1240px;margin:0 auto;padding:0 20px}
header{padding-top:28px}footer{padding-top:24px;padding-bottom:32px;color:var(--soft);font-size:13px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:18px;margin:36px 0 12px}h3{font-size:15px;margin:0}
p{margin:0 0 8px}.soft{color:var(--soft)}.small{font-size:13px}
a{color:var(--accent)}:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px;box-shadow:var(--shadow)}
.tag{display:inline-block;border-radius:99px;padding:1px 10px;font-size:13px;font-weight:600;border:1px solid var(--line);
background:var(--card);vertical-align:3px}
.tag.good{color:var(--good);background:var(--good-back);border-color:transparent}
.tag.bad{color:var(--bad);background:var(--bad-back);border-color:transparent}
.note{background:var(--warn-back);border-radius:8px;padding:8px 14px;margin:12px 0 0}
.note ul{margin:0;padding-left:18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0 0;padding:0}
.tiles div{min-width:0}.tiles dt{color:var(--soft);font-size:13px}
.tiles dd{margin:0;font-size:22px;font-weight:600;line-height:1.25;overflow-wrap:anywhere}
.tiles dd small{display:block;font-size:13px;font-weight:400;color:var(--soft)}
.charts{display:grid;align-items:start;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:16px}
figure{margin:0;position:relative}
figcaption{display:flex;flex-wrap:wrap;gap:2px 14px;align-items:baseline;margin-bottom:6px}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:13px;color:var(--soft);margin:0;padding:0;list-style:none}
.legend span{display:inline-block;width:16px;height:3px;border-radius:2px;vertical-align:middle;margin-right:6px}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
.grid{stroke:var(--line)}.base{stroke:var(--axis)}.raw{fill:none;opacity:.35;stroke-width:1}.band{stroke:none;opacity:.28}
.narrow{max-width:760px}
.curve{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.broken{fill:var(--bad)}.cursor{stroke:var(--axis);stroke-width:1}
.tip{position:absolute;pointer-events:none;background:var(--ink);color:var(--page);border-radius:6px;padding:4px 9px;
font-size:13px;white-space:nowrap;font-variant-numeric:tabular-nums;z-index:1}
details{margin-top:8px}summary{cursor:pointer;color:var(--soft);font-size:13px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);font-size:13px;padding-bottom:4px}
th,td{text-align:left;padding:5px 14px 5px 0;border-top:1px solid var(--line);vertical-align:top}
thead th{border-top:0;color:var(--soft);font-weight:600;font-size:13px}th{font-weight:500}
.n{text-align:right}td.n:last-child,th.n:last-child{padding-right:0}
code,pre{font:13px/1.5 ui-monospace,'SF Mono',Menlo,Consolas,'Liberation Mono',monospace}
pre{overflow-x:auto;margin:8px 0 0}td code{overflow-wrap:anywhere}
.pairs{columns:3 300px;column-gap:36px;margin:0}
.pairs div{display:flex;justify-content:space-between;gap:16px;break-inside:avoid;border-bottom:1px solid var(--line);
padding:4px 0}.pairs dt{color:var(--soft)}.pairs dd{margin:0;text-align:right;overflow-wrap:anywhere}
.samples{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,270px),1fr));gap:16px;padding:0;margin:0;
list-style:none}
.samples.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,380px),1fr))}
.samples .images{display:grid;gap:6px;margin-bottom:8px;grid-template-columns:repeat(auto-fit,minmax(76px,1fr))}
.samples .images span{font-size:12px;color:var(--soft);text-align:center}
.samples img{display:block;width:100%;height:170px;object-fit:contain;background:var(--page);border-radius:6px}
.samples .several img{height:104px}
.samples .right img{outline:3px solid var(--good);outline-offset:-3px}
.samples ol{margin:6px 0 0;padding:0;list-style:none}
.samples ol li{display:flex;justify-content:space-between;gap:10px;position:relative;padding:1px 6px;
overflow-wrap:anywhere}
.samples ol li i{position:absolute;inset:1px auto 1px 0;background:var(--s0);opacity:.16;border-radius:4px}
.samples ol li span:last-child{white-space:nowrap}.samples ol li:first-child{font-weight:600}
.rows{margin:0;padding-left:18px;overflow-wrap:anywhere}
.hits{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,220px),1fr));gap:16px;padding:0;margin:20px 0;
list-style:none}
.hits img,.hits .none{display:flex;align-items:center;justify-content:center;width:100%;height:190px;object-fit:contain;
background:var(--page);border-radius:6px;color:var(--soft);font-size:13px}
.hits .name{display:block;overflow-wrap:anywhere;margin-top:8px}
.hits .score{display:flex;align-items:center;gap:8px;font-size:13px;color:var(--soft);font-variant-numeric:tabular-nums}
.hits .bar{flex:1;height:6px;border-radius:3px;background:var(--line);overflow:hidden}
.hits .bar i{display:block;height:100%;background:var(--s0)}
@media print{body{background:#fff}.card{break-inside:avoid;box-shadow:none}details{display:none}}
@media(max-width:560px){main,header,footer{padding-left:14px;padding-right:14px}h1{font-size:22px}svg text{font-size:14.5px}}
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_in_text_is_text() {
        assert_eq!(escape("<a href='x'>\"&\"\0"), "&lt;a href=&#39;x&#39;&gt;&quot;&amp;&quot;\u{fffd}");
        assert!(document("</title><script>", "", "").contains("<title>&lt;/title&gt;&lt;script&gt;</title>"));
    }

    #[test]
    fn images_are_told_by_their_bytes() {
        assert_eq!(data_uri(&[0xff, 0xd8, 0xff, 1]).as_deref(), Some("data:image/jpeg;base64,/9j/AQ=="));
        assert!(data_uri(b"\x89PNG\r\n").unwrap().starts_with("data:image/png;base64,"));
        assert!(data_uri(b"RIFF1234WEBPVP8 ").unwrap().starts_with("data:image/webp;"));
        assert_eq!(data_uri(b"<svg onload=alert(1)>"), None);
        assert_eq!(data_uri(b""), None);
    }

    #[test]
    fn numbers_by_hand() {
        for (value, shown) in [
            (0.0, "0"),
            (0.5, "0.5"),
            (0.123_456, "0.1235"),
            (-12.3456, "−12.35"),
            (100.0, "100"),
            (999.96, "1,000"),
            (1_234_567.0, "1,234,567"),
            (2e-5, "2e−5"),
            (1.234e-5, "1.23e−5"),
            (-1.5e-5, "−1.5e−5"),
            (3e12, "3e12"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "−∞"),
        ] {
            assert_eq!(number(value), shown);
        }
    }
}
