//! The registry entries of CSR.

use super::{CsrOptions, Share, bind};
use crate::entry::{Entry, KeysCoded, Parameter, WINDOW};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::Needs;

/// CSR and its optional parts.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

/// The dictionary set that is used if a name does not give one (`csr-8` is `csr-8@neuraldict`).
pub const DEFAULT_DICTIONARIES: &str = "neuraldict";
/// The set that is trained with the best of the variants that go beyond the paper.
pub const BEST_DICTIONARIES: &str = "best";
/// The set for schemes that code keys after position embedding.
pub const ROPE_DICTIONARIES: &str = "neuraldict-rope";

const LEVEL: Parameter = Parameter { name: "S", default: "", meaning: "atoms per key, and per value over its chunks" };
const SET: Parameter =
    Parameter { name: "@", default: DEFAULT_DICTIONARIES, meaning: "the dictionary set, for example kmeans" };
const PAPER: &str = "Zhang et al., CSR: Achieving 1 Bit Key-Value Cache via Sparse Representation, AAAI 2025";

const ENTRIES: &[Entry] = &[
    Entry {
        pattern: "csr-S",
        examples: &["csr-4", "csr-8", "csr-8@kmeans"],
        summary: "CSR with S atoms per key and S/2 in each of two value chunks; `csr-S@kmeans` uses the k-means dictionaries, `csr-S@best` those trained with options beyond the paper (`just train-best`)",
        citation: PAPER,
        keys_coded: KeysCoded::BeforeRope,
        parameters: &[LEVEL, SET],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "csr-S+online",
        examples: &[
            "csr-8+online",
            "csr-8+online(sampled=4,guard=6)",
            "csr-8+online(sampled=3,guard=5,sampler=worst,prefill=restored)",
        ],
        summary: "CSR with atoms from the prompt, sampled and guard",
        citation: PAPER,
        keys_coded: KeysCoded::BeforeRope,
        parameters: &[
            LEVEL,
            SET,
            Parameter { name: "+online(sampled)", default: "128", meaning: "tokens sampled from the prompt" },
            Parameter { name: "+online(guard)", default: "256", meaning: "tokens kept because they are coded worst" },
            Parameter { name: "+online(sampler)", default: "reverse", meaning: "reverse, uniform, strided or worst" },
            Parameter {
                name: "+online(prefill)",
                default: "exact",
                meaning: "exact: a prefill taken over; restored: the first call",
            },
        ],
        prefill_as_decoded: false,
    },
    Entry {
        pattern: "csr-S+window",
        examples: &[
            "csr-4+window",
            "csr-4+window(sinks=2,recent=9)",
            "csr-4+window(sinks=3,recent=5)+restore",
            "csr-4+window(sinks=2,recent=5,graded=11)",
        ],
        summary: "CSR between exact tokens in f16, and 4-bit ones if asked for",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
        parameters: &[LEVEL, SET, WINDOW[0], WINDOW[1], WINDOW[2]],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "csr-S+fp8",
        examples: &["csr-8+fp8", "csr-8+int4"],
        summary: "CSR with packed codes: indices in ceil(log2 N) bits and coefficients in f16, fp8, int8, int6 or int4",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
        parameters: &[LEVEL, SET],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "csr-S+refit",
        examples: &["csr-4+refit"],
        summary: "CSR with least-squares coefficients for the atoms that matching pursuit picked",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
        parameters: &[LEVEL, SET],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "csr-S+stop",
        examples: &["csr-8+stop", "csr-8+stop(error=0.2)+int6"],
        summary: "CSR that stops adding atoms once a vector is close enough, in rows of different lengths; nominal bits \
                  are those of full rows",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
        parameters: &[
            LEVEL,
            SET,
            Parameter { name: "+stop(error)", default: "0.05", meaning: "relative squared error that is close enough" },
        ],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "csr-S+split",
        examples: &["csr-8+split(k=10,v=6)"],
        summary: "CSR with other levels for keys than for values, S on average",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
        parameters: &[
            LEVEL,
            SET,
            Parameter { name: "+split(k)", default: "", meaning: "atoms per key" },
            Parameter { name: "+split(v)", default: "", meaning: "atoms per value over its chunks; k + v = 2 S" },
        ],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "csr-S+budget",
        examples: &["csr-4+budget"],
        summary: "CSR with levels by layer and kind, S on average, spent where they lower KL most (`just allocate`)",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
        parameters: &[LEVEL, SET],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "csr-S+rope",
        examples: &[
            "csr-8+rope",
            "csr-8+rope+stop(error=0.1)+int8+online(sampled=3,guard=4,prefill=restored)+window(sinks=2,recent=4)+split(k=12,v=4)+refit",
        ],
        summary: "CSR with keys coded after position embedding, which are scored without restoring them; the set is \
                  neuraldict-rope, trained on such keys (`just train-rope`)",
        citation: "",
        keys_coded: KeysCoded::AfterRope,
        parameters: &[LEVEL, Parameter { default: ROPE_DICTIONARIES, ..SET }],
        prefill_as_decoded: true,
    },
    Entry {
        pattern: "csr-S+restore",
        examples: &[
            "csr-4+restore",
            "csr-8+online(sampled=2,guard=9,sampler=strided,prefill=restored)+int6+window(sinks=1,recent=3)+refit",
        ],
        summary: "CSR attending to restored keys and values instead of on codes: the oracle of the default. All parts \
                  combine: `csr-8+online+int4+window+refit`",
        citation: "",
        keys_coded: KeysCoded::BeforeRope,
        parameters: &[LEVEL, SET],
        prefill_as_decoded: true,
    },
];

fn read(name: &SchemeName<'_>) -> Read {
    let Some(options) = CsrOptions::read(name)? else { return Ok(None) };
    let (keys_coded, default) = match options.rope {
        true => (KeysCoded::AfterRope, ROPE_DICTIONARIES),
        false => (KeysCoded::BeforeRope, DEFAULT_DICTIONARIES),
    };
    let budget = (options.share == Share::Budget).then_some(options.sparsity);
    let needs = Needs { budget, ..Needs::dictionaries(keys_coded, name.artefacts.unwrap_or(default)) };
    Ok(Some(Plan::new(needs, move |bound| Ok(Box::new(bind(&bound, &options)?)))))
}
