//! The listing of schemes contains what profiles and tables need to know.
#![allow(clippy::unwrap_used)]

use kvcsr_cache::registry;

#[test]
fn the_listing_states_parameters_sources_and_bits() {
    let listing = serde_json::to_value(registry::listing().unwrap()).unwrap();
    let of = |pattern: &str| listing.as_array().unwrap().iter().find(|e| e["pattern"] == pattern).unwrap().clone();
    let bits = |pattern: &str| {
        let entry = of(pattern);
        (entry["nominal_bits"].as_f64().unwrap(), entry["stored_bits"].as_f64().unwrap())
    };
    let near = |a: (f64, f64), b: (f64, f64)| (a.0 - b.0).abs() < 5e-3 && (a.1 - b.1).abs() < 5e-3;
    for (pattern, expected) in [
        ("dense", (32.0, 32.0)),
        ("dense-bf16", (16.0, 16.0)),
        ("fp8", (8.0, 8.0)),
        ("q8_0", (8.5, 8.5)),
        ("q4_0", (4.5, 4.5)),
        ("kivi-B", (2.0, 3.0)),
        ("asymkv-LK-LV", (1.25, 2.25)),
        ("vidkv-B-1.58", (1.54, 2.1875)),
        ("turboquant-B", (2.0, 2.125)),
        ("turboquant-2.5", (2.5, 2.5)),
        ("nsnquant-B", (2.0, 2.0 + 20.0 / 128.0 + 4.0 / 64.0 + 64.0 / 8192.0)),
        ("csr-S", (1.0, 1.0)),
    ] {
        let bits = bits(pattern);
        assert!(near(bits, expected), "{pattern}: {bits:?}");
    }
    assert_eq!(of("turboquant-B+pre-rope")["keys_coded"], "before-rope");
    assert!(of("kivi-B")["citation"].as_str().unwrap().contains("ICML 2024"));
    let parameters = of("kivi-B")["parameters"].as_array().unwrap().clone();
    assert!(parameters.iter().any(|p| p["name"] == "group" && p["default"] == "32"));
}
