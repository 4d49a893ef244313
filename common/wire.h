/* The wire, version 1: a 64-byte header, msgpack meta of at most 64 KiB, at most one raw payload
 * frame. common/WIRE.md is the protocol's text (every field with its key); this is its codec.
 * Nothing here touches a socket: the functions turn structs into frames and untrusted frames into
 * checked structs. */
#ifndef IFL_COMMON_WIRE_H
#define IFL_COMMON_WIRE_H

#include "common/config.h"
#include "common/hash.h"
#include "common/profile_parts.h"
#include "common/status.h"
#include "common/trajectory.h"

#define IFL_WIRE_MAGIC 0x314c4649u /* the bytes "IFL1" */
#define IFL_WIRE_MAJOR 1
/* 1: HELLO names the parts of the numerics profile. 2: chunks come as patches of a base. 3: begun
 * trajectories travel. 4: sessions for weights alone (relays); WELCOME grants bytes. */
#define IFL_WIRE_MINOR 5
#define IFL_WIRE_HEADER_BYTES 64
#define IFL_WIRE_META_MAX (64 * 1024)
#define IFL_WIRE_PAYLOAD_MAX (16 * 1024 * 1024)
#define IFL_WIRE_NAME_MAX 32  /* actor name, with NUL */
#define IFL_WIRE_TEXT_MAX 512 /* reasons and error texts, with NUL */
#define IFL_WIRE_IDENTITY_BYTES 16
#define IFL_WIRE_SAMPLES_MAX 1024 /* of one group */
#define IFL_WIRE_STATS_MAX 64
#define IFL_WIRE_STAT_NAME_MAX 64 /* with NUL */
#define IFL_WIRE_GET_MAX 64       /* chunks asked for in one WGET */
#define IFL_WIRE_TENSORS_MAX 65536
#define IFL_WIRE_TENSOR_NAME_MAX 128 /* with NUL */
#define IFL_WIRE_CHUNKS_MAX 262144
#define IFL_WIRE_STOP_BYTES_MAX 64 /* with NUL, as in the configuration */

/* Type numbers are fixed for ever; new ones are added at the end. */
typedef enum {
    IFL_WIRE_HELLO = 1,
    IFL_WIRE_WELCOME = 2,
    IFL_WIRE_REJECT = 3,
    IFL_WIRE_PING = 4,
    IFL_WIRE_PONG = 5,
    IFL_WIRE_LEASE = 6,
    IFL_WIRE_RETURN = 7,
    IFL_WIRE_TRAJ = 8,
    IFL_WIRE_TRAJ_ACK = 9,
    IFL_WIRE_NACK = 10,
    IFL_WIRE_WANN = 11,
    IFL_WIRE_WGET = 12,
    IFL_WIRE_WCHUNK = 13,
    IFL_WIRE_WNACK = 14,
    IFL_WIRE_WREADY = 15,
    IFL_WIRE_WSET = 16,
    IFL_WIRE_WDONE = 17,
    IFL_WIRE_CREDIT = 18,
    IFL_WIRE_DRAIN = 19,
    IFL_WIRE_BYE = 20,
    IFL_WIRE_ERROR = 21,
    IFL_WIRE_STATS = 22,
    IFL_WIRE_GROUP = 23, /* reserved: collectives of a learner of several ranks */
} ifl_wire_type;

/* A receiver that doesn't know the type ignores the message instead of closing the peer. */
#define IFL_WIRE_FLAG_OPTIONAL 1u

const char *ifl_wire_type_name(int type); /* "HELLO"; "type?" for unknown ones */

typedef struct ifl_wire_header {
    uint8_t major, minor;
    uint16_t type;
    uint32_t flags;
    uint32_t n_meta;
    uint64_t n_payload;
    uint64_t session;
    uint64_t seq;   /* 1, 2, 3, ... per session, direction and plane; a gap means a lost message */
    uint64_t ack;   /* last seq received from the other side on this plane */
    int64_t policy; /* a policy version that concerns the message; -1 = none */
} ifl_wire_header;

/* Fills in all 64 bytes, the XXH3-64 over header[0..55] and meta included. */
void ifl_wire_header_encode(const ifl_wire_header *header, const uint8_t *meta, uint8_t out[64]);

/* Checks length, magic, major, limits and hash. IFL_UNSUPPORTED: another major version. */
ifl_status ifl_wire_header_decode(ifl_wire_header *out, const uint8_t *bytes, size_t n_bytes,
                                  const uint8_t *meta, size_t n_meta, ifl_error *err);

/* --- Fields of the messages ------------------------------------------------------------------- */

typedef struct ifl_wire_hello {
    uint16_t major, minor_min, minor_max;
    char build[64];
    uint64_t caps; /* IFL_WIRE_CAP_WEIGHTS */
    uint8_t incarnation[IFL_WIRE_IDENTITY_BYTES];
    char name[IFL_WIRE_NAME_MAX];
    ifl_hash fingerprint; /* ifl_model.fingerprint */
    ifl_hash profile;     /* ifl_model.profile */
    ifl_hash tokenizer;
    int64_t held_version; /* -1 = none */
    uint64_t nonce;
    ifl_profile_parts parts; /* of the numerics profile; sent if minor_max >= 1, else n = 0 */
} ifl_wire_hello;

/* HELLO: a session for weights alone: a relay's, or an actor's with a relay. It gets no leases, is
 * told of no trajectories, and has no model whose hashes could be compared. Since 1.4. */
#define IFL_WIRE_CAP_WEIGHTS 1u
/* WELCOME: an actor that has weights in use takes others only when a WSET names their version. */
#define IFL_WIRE_CAP_DIRECTED 1u
/* WELCOME: the actor computes under another numerics profile, and is admitted all the same. */
#define IFL_WIRE_CAP_FOREIGN 2u

typedef struct ifl_wire_welcome {
    uint16_t minor;
    uint64_t caps;    /* IFL_WIRE_CAP_... */
    uint64_t session; /* same as the header's */
    /* Together they name one learner process, and so one history of versions: a learner that goes
     * on from a checkpoint makes other weights under the same numbers. */
    char run_uuid[33];
    uint64_t run_epoch; /* drawn at random by each process */
    int32_t lease_s, heartbeat_ms, heartbeat_misses;
    int64_t payload_max;
    int32_t chunk_window;    /* most WGET chunks outstanding per actor */
    int64_t current_version; /* newest announced policy, -1 = none yet */
    uint64_t nonce;          /* echo of HELLO's */
    int64_t
        trajectory_bytes; /* most that may be sent and not answered; since 1.4, else 0: no bound */
} ifl_wire_welcome;

typedef enum {
    IFL_REJECT_VERSION = 1, /* protocol */
    IFL_REJECT_FINGERPRINT = 2,
    IFL_REJECT_PROFILE = 3,
    IFL_REJECT_TOKENIZER = 4,
    IFL_REJECT_FULL = 5, /* too many actors: try again later */
    IFL_REJECT_BANNED = 6,
    IFL_REJECT_MALFORMED = 7,
    IFL_REJECT_KEY = 8,
} ifl_reject_code;

typedef struct ifl_wire_reject {
    int32_t code;           /* ifl_reject_code */
    int32_t retry_after_ms; /* 0 = don't try again */
    char text[IFL_WIRE_TEXT_MAX];
} ifl_wire_reject;

/* Progress counters travel with every heartbeat: a live transport thread proves no live engine. */
typedef struct ifl_wire_ping { /* PONG echoes clock_ns of the PING it answers */
    int64_t clock_ns;
    uint64_t progress;    /* actor: decode steps; learner: optimizer steps and phases */
    int32_t phase;        /* sender's own numbering, for status lines */
    int32_t n_queued;     /* actor: sequences waiting; learner: events not yet polled */
    int64_t bytes_queued; /* actor: outbox; learner: events */
} ifl_wire_ping;

/* Work: samples of one group of one task. */
typedef struct ifl_wire_lease {
    uint64_t lease_id;
    int32_t attempt; /* 0 = first issue */
    uint8_t purpose; /* ifl_purpose */
    uint64_t task_serial;
    char task_id[IFL_TASK_ID_MAX];
    int32_t group_size, n_samples;
    const int32_t *samples; /* [n_samples], strictly ascending, each < group_size */
    int32_t n_prompt;
    const int32_t *prompt; /* [n_prompt] token ids */
    char checker[64];
    const char *answer; /* NUL-terminated; NULL is sent as "" */
    const char *meta;   /* JSON text or "" */
    const char *text;   /* the prompt as text, for checkers and people; or "" */
    float temperature;
    int32_t top_k;
    float top_p;
    int32_t max_new_tokens;
    int32_t n_stops;
    char stops[IFL_STOPS_MAX][IFL_WIRE_STOP_BYTES_MAX];
    uint64_t seed;            /* of the run */
    int64_t required_version; /* >= 0: generate under exactly that version; -1 = any */
    int64_t deadline_ms;      /* from receipt; 0 = none */
} ifl_wire_lease;

typedef enum {
    IFL_RETURN_DRAIN = 1,    /* the actor is going */
    IFL_RETURN_CAPACITY = 2, /* can never fit here */
    IFL_RETURN_VERSION = 3,  /* required version is gone */
    IFL_RETURN_DEADLINE = 4,
    IFL_RETURN_FAILED = 5,
} ifl_return_reason;

typedef struct ifl_wire_return {
    uint64_t lease_id;
    int32_t reason; /* ifl_return_reason */
    int32_t n_samples;
    const int32_t *samples; /* [n_samples] that will not come, strictly ascending */
    char text[IFL_WIRE_TEXT_MAX];
} ifl_wire_return;

/* Identity of a trajectory inside a run. */
typedef struct ifl_trajectory_key {
    uint64_t task_serial;
    int32_t sample;
    uint8_t purpose;
} ifl_trajectory_key;

static inline ifl_trajectory_key ifl_trajectory_key_of(const ifl_trajectory *traj) {
    return (ifl_trajectory_key){traj->task_serial, traj->sample, traj->purpose};
}
static inline bool ifl_trajectory_key_equal(ifl_trajectory_key a, ifl_trajectory_key b) {
    return a.task_serial == b.task_serial && a.sample == b.sample && a.purpose == b.purpose;
}

typedef enum {
    IFL_ACK_STORED = 1,
    IFL_ACK_DUPLICATE = 2,
    IFL_ACK_BEGUN = 3, /* an unfinished one (IFL_FINISH_ABORTED): kept in memory, for who goes on */
} ifl_ack_status;

typedef struct ifl_wire_traj_ack {
    ifl_trajectory_key key;
    uint64_t lease_id;
    int32_t status; /* ifl_ack_status */
} ifl_wire_traj_ack;

typedef enum {
    IFL_NACK_INVALID = 1, /* fails ifl_trajectory_check: never send it again */
    IFL_NACK_UNKNOWN = 2, /* no such task in this run */
    IFL_NACK_STALE = 3,   /* too old to be used */
    IFL_NACK_BUSY = 4,    /* learner's queue is full: the outbox sends again after retry_after_ms */
} ifl_nack_code;

typedef struct ifl_wire_nack {
    ifl_trajectory_key key;
    uint64_t lease_id;
    int32_t code; /* ifl_nack_code */
    int32_t retry_after_ms;
    char text[IFL_WIRE_TEXT_MAX];
} ifl_wire_nack;

/* --- The manifest of a policy version (WANN) -------------------------------------------------- */

typedef enum {
    IFL_CODEC_DENSE = 0, /* raw bf16 elements */
    /* common/weight_patch.h, against the same chunk of a base version. */
    IFL_CODEC_ULP_GAP = 1,   /* plain */
    IFL_CODEC_ULP_CLASS = 3, /* by class; 2 was an earlier form of it */
} ifl_codec;
static inline bool ifl_codec_is_patch(int32_t codec) {
    return codec == IFL_CODEC_ULP_GAP || codec == IFL_CODEC_ULP_CLASS;
}

typedef struct ifl_manifest_tensor {
    char name[IFL_WIRE_TENSOR_NAME_MAX];
    int64_t offset, n_elements; /* in the canonical flat order */
    bool trainable;
    int32_t delta_of; /* index of the tensor that this one is added to; -1 = dense, stands alone */
} ifl_manifest_tensor;

typedef struct ifl_manifest_chunk {
    int64_t begin, n_elements; /* consecutive, covering [0, n_elements) */
    ifl_hash hash;             /* XXH3-128 of the raw bf16 bytes */
} ifl_manifest_chunk;

typedef struct ifl_manifest {
    int64_t version, parent; /* parent -1 = none needed (dense) */
    int32_t codec;           /* of the chunks that need no base: dense */
    int64_t n_elements;
    int32_t n_tensors, n_chunks;
    ifl_manifest_tensor *tensors;
    ifl_manifest_chunk *chunks;
    ifl_hash content; /* XXH3-128 of all canonical bf16 bytes: ifl_weights_hash */
    ifl_hash root;    /* XXH3-128 of (version, parent, codec, tables, content): names the version */
} ifl_manifest;

/* Owned, with zeroed tables. IFL_LIMIT beyond IFL_WIRE_TENSORS_MAX or IFL_WIRE_CHUNKS_MAX. */
ifl_status ifl_manifest_create(ifl_manifest **out, int32_t n_tensors, int32_t n_chunks,
                               ifl_error *err);
void ifl_manifest_free(ifl_manifest *manifest);
ifl_hash ifl_manifest_root(const ifl_manifest *manifest); /* computes it; doesn't store it */
/* Tables in order, covering, inside n_elements, root right. Every received manifest has passed. */
ifl_status ifl_manifest_check(const ifl_manifest *manifest, ifl_error *err);

typedef struct ifl_wire_wget {
    int64_t version;
    int64_t base; /* the version that the actor has and would rather have patched; -1 = none */
    int32_t n_chunks;
    int32_t chunks[IFL_WIRE_GET_MAX];
} ifl_wire_wget;

typedef struct ifl_wire_wchunk {
    int64_t version;
    int32_t chunk;
    int32_t codec;       /* dense, whatever WGET named, when that is shorter or there is no patch */
    int64_t base;        /* what the patch is against; -1 with dense */
    ifl_hash hash;       /* XXH3-128 of a patch's payload; dense ones have theirs in the manifest */
    const uint8_t *data; /* payload; any alignment */
    size_t n_data;
    void *frame; /* decoded messages: what keeps `data` alive */
    void (*frame_free)(void *frame);
} ifl_wire_wchunk;

typedef struct ifl_wire_wnack {
    int64_t version;
    int64_t newest; /* version to ask for instead, -1 = none */
    char text[IFL_WIRE_TEXT_MAX];
} ifl_wire_wnack;

typedef struct ifl_wire_wready { /* WREADY: verified and staged; WSET uses version and root too */
    int64_t version;
    ifl_hash root;
} ifl_wire_wready;

typedef struct ifl_wire_wset {
    int64_t version;
    ifl_hash root; /* 0: as announced */
    int32_t rule;  /* 0 = this version or one before it, at the next decode boundary */
} ifl_wire_wset;

typedef struct ifl_wire_wdone {
    int64_t version;
    ifl_hash root;
    int64_t stall_us; /* between two decode steps */
} ifl_wire_wdone;

typedef struct ifl_wire_credit {
    int32_t n_sequences; /* actor: sequences it could start now */
    int64_t n_bytes;     /* room for payload bytes; on the weight plane: opens the plane */
} ifl_wire_credit;

typedef struct ifl_wire_drain {
    int64_t deadline_ms; /* from receipt */
    char text[IFL_WIRE_TEXT_MAX];
} ifl_wire_drain;

typedef enum {
    IFL_BYE_DONE = 1,    /* the run is over: don't come back */
    IFL_BYE_DRAINED = 2, /* an actor that has handed everything back */
    IFL_BYE_FAILED = 3,
} ifl_bye_code;

typedef struct ifl_wire_bye {
    int32_t code; /* ifl_bye_code */
    char text[IFL_WIRE_TEXT_MAX];
} ifl_wire_bye;

typedef enum {
    IFL_WIRE_E_MALFORMED = 1,
    IFL_WIRE_E_FENCED = 2,   /* unknown or old session: send HELLO again */
    IFL_WIRE_E_SEQUENCE = 3, /* a message was lost: send HELLO again */
    IFL_WIRE_E_TYPE = 4,     /* unknown, or not this side's to send */
    IFL_WIRE_E_LIMIT = 5,
    IFL_WIRE_E_QUARANTINE = 6, /* too many refused trajectories */
    IFL_WIRE_E_DEVICE = 7,     /* actor: what it computes on has failed; its leases are free */
} ifl_wire_error_code;

typedef struct ifl_wire_error {
    int32_t code; /* ifl_wire_error_code */
    uint64_t seq; /* of the offending message */
    char text[IFL_WIRE_TEXT_MAX];
} ifl_wire_error;

typedef struct ifl_wire_stat {
    char name[IFL_WIRE_STAT_NAME_MAX];
    double value; /* finite */
} ifl_wire_stat;

typedef struct ifl_wire_stats {
    int32_t n;
    const ifl_wire_stat *entries; /* [n <= IFL_WIRE_STATS_MAX] */
} ifl_wire_stats;

/* One message. To send: zero-initialise with ifl_message_make, fill in the member of its type,
 * pointers borrowed for the call. Received: owns everything it points to; ifl_message_clear frees
 * it. */
typedef struct ifl_message {
    ifl_wire_type type;
    int64_t policy; /* -1 = none */
    uint64_t session, seq,
        ack;    /* received messages only; the transport fills them in when sending */
    bool owned; /* decoded: pointers below belong to the message */
    void *storage;
    union {
        ifl_wire_hello hello;
        ifl_wire_welcome welcome;
        ifl_wire_reject reject;
        ifl_wire_ping ping; /* PING and PONG */
        ifl_wire_lease lease;
        ifl_wire_return returned;
        struct {
            ifl_trajectory *trajectory; /* the receiver may take it: set it to NULL */
        } traj;
        ifl_wire_traj_ack traj_ack;
        ifl_wire_nack nack;
        struct {
            ifl_manifest *manifest; /* the receiver may take it: set it to NULL */
        } wann;
        ifl_wire_wget wget;
        ifl_wire_wchunk wchunk;
        ifl_wire_wnack wnack;
        ifl_wire_wready wready;
        ifl_wire_wset wset;
        ifl_wire_wdone wdone;
        ifl_wire_credit credit;
        ifl_wire_drain drain;
        ifl_wire_bye bye;
        ifl_wire_error error;
        ifl_wire_stats stats;
    };
} ifl_message;

ifl_message ifl_message_make(ifl_wire_type type);
void ifl_message_clear(ifl_message *message); /* frees what is owned and zeroes it; NULL is fine */

/* The frames of one message without its header. */
typedef struct ifl_wire_frames {
    uint16_t type;
    uint32_t flags;
    int64_t policy;
    uint8_t *meta; /* malloc'd, or NULL */
    size_t n_meta;
    uint8_t *payload; /* malloc'd, or NULL; for WCHUNK NULL: the sender passes its own buffer */
    size_t n_payload;
} ifl_wire_frames;

/* Checks every limit while encoding: IFL_LIMIT names the field, what it is and what it may be. For
 * WCHUNK n_payload is set and payload stays NULL. Call ifl_wire_frames_clear afterwards in any
 * case. */
ifl_status ifl_wire_encode(const ifl_message *message, ifl_wire_frames *out, ifl_error *err);
void ifl_wire_frames_clear(ifl_wire_frames *frames);

/* Decodes untrusted frames. `header` has passed ifl_wire_header_decode. Everything is copied,
 * except that WCHUNK's data points into `payload`. On failure *out is cleared. IFL_UNSUPPORTED:
 * unknown type. Trajectories are structurally sound afterwards; their meaning is
 * ifl_trajectory_check's. */
ifl_status ifl_wire_decode(ifl_message *out, const ifl_wire_header *header, const uint8_t *meta,
                           size_t n_meta, const uint8_t *payload, size_t n_payload, ifl_error *err);

#endif
