//! A package registry on this machine for pip, which can be told to fail.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Cursor, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How a package is sent.
#[derive(Clone, Copy, PartialEq)]
pub enum Sent {
    Whole,
    /// Half of it, then the end of the connection.
    Cut,
    /// Half of it, then nothing.
    Stalled,
}

#[derive(Default)]
struct State {
    wheels: BTreeMap<String, (Vec<u8>, Option<Sent>)>,
    asked: Vec<String>,
}

/// The registry. Dropping this value ends it.
pub struct Registry {
    state: Arc<Mutex<State>>,
    ended: Arc<AtomicBool>,
    address: String,
}

impl Registry {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let (state, ended) = (Arc::<Mutex<State>>::default(), Arc::<AtomicBool>::default());
        let (served, stop) = (state.clone(), ended.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (state, stop) = (served.clone(), stop.clone());
                std::thread::spawn(move || serve(stream, &state, &stop));
            }
        });
        Self { state, ended, address }
    }

    /// Offers a package with one file.
    pub fn offer(&self, package: &str, file: &str, contents: &[u8], sent: Sent) {
        let wheel = wheel(package, file, contents);
        self.state.lock().unwrap().wheels.insert(package.to_owned(), (wheel, Some(sent)));
    }

    /// The packages that were downloaded or begun since the last call.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// The environment variables that make pip use this registry.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        [
            ("PIP_INDEX_URL", format!("{}/simple/", self.address)),
            ("PIP_CONFIG_FILE", "/dev/null".to_owned()),
            ("PIP_EXTRA_INDEX_URL", String::new()),
            ("PIP_NO_CACHE_DIR", "1".to_owned()),
            ("PIP_RETRIES", "0".to_owned()),
            ("NO_PROXY", "127.0.0.1".to_owned()),
            ("no_proxy", "127.0.0.1".to_owned()),
        ]
        .into()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for connections.
        let _ = TcpStream::connect(self.address.trim_start_matches("http://"));
    }
}

/// A wheel of version 1.0, with the files that pip checks.
fn wheel(package: &str, file: &str, contents: &[u8]) -> Vec<u8> {
    let about = format!("{}-1.0.dist-info", package.replace('-', "_"));
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let files = [
        (file.to_owned(), contents.to_vec()),
        (format!("{about}/METADATA"), format!("Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n").into_bytes()),
        (
            format!("{about}/WHEEL"),
            b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n".to_vec(),
        ),
        (format!("{about}/RECORD"), Vec::new()),
    ];
    for (name, contents) in files {
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
        zip.start_file(name, options).unwrap();
        zip.write_all(&contents).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn serve(stream: TcpStream, state: &Mutex<State>, stop: &AtomicBool) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    // Skips the headers.
    lines.by_ref().find(String::is_empty);
    let path = request.split_whitespace().nth(1).unwrap_or_default().trim_matches('/').to_owned();
    let (folder, package) = path.split_once('/').unwrap_or_default();
    let mut out = stream;
    // Files have the package's name with underscores.
    let package = package.trim_end_matches("-1.0-py3-none-any.whl").replace('_', "-");
    let found = state.lock().unwrap().wheels.get(&package).cloned();
    let file = format!("{}-1.0-py3-none-any.whl", package.replace('-', "_"));
    // Errors are ignored: in some cases the reader is gone.
    let _ = match (folder, found) {
        ("simple", Some(_)) => {
            let page = format!("<html><body><a href=\"/files/{file}\">{file}</a></body></html>");
            head(&mut out, "200 OK", "text/html", page.len()).and_then(|()| out.write_all(page.as_bytes()))
        }
        ("files", Some((wheel, Some(sent)))) => {
            state.lock().unwrap().asked.push(package);
            send(&mut out, &wheel, sent, stop)
        }
        _ => head(&mut out, "404 Not Found", "text/plain", 0),
    };
}

fn head(out: &mut TcpStream, status: &str, kind: &str, length: usize) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
}

fn send(out: &mut TcpStream, wheel: &[u8], sent: Sent, stop: &AtomicBool) -> std::io::Result<()> {
    head(out, "200 OK", "application/octet-stream", wheel.len())?;
    if sent == Sent::Whole {
        return out.write_all(wheel);
    }
    out.write_all(&wheel[..wheel.len() / 2])?;
    out.flush()?;
    while sent == Sent::Stalled && !stop.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
