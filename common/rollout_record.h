/* Framing shared by the rollout log's writer and reader. Internal to common/rollout_*.c. */
#ifndef IFL_COMMON_ROLLOUT_RECORD_H
#define IFL_COMMON_ROLLOUT_RECORD_H

#include "common/rollout_log.h"

#define IFL_RECORD_HEADER_BYTES 32
#define IFL_RECORD_KEY_BYTES 13
#define IFL_SEGMENTS_MAX 999999

/* Builds the header of a record, checksums included. */
ifl_status ifl_record_header_make(uint8_t header[IFL_RECORD_HEADER_BYTES], ifl_record_type type,
                                  int64_t wall_ms, const void *meta, size_t n_meta,
                                  const void *payload, size_t n_payload, ifl_error *err);

/* Reads a header's fields. False: magic, type or the header's own check is wrong. */
bool ifl_record_header_parse(const uint8_t header[IFL_RECORD_HEADER_BYTES], ifl_record_type *type,
                             int64_t *wall_ms, size_t *n_meta, size_t *n_payload);

/* The checksum at byte 24 fits header, meta and payload. `body`: meta, then payload. */
bool ifl_record_body_fits(const uint8_t header[IFL_RECORD_HEADER_BYTES], const uint8_t *body,
                          size_t n_body);

/* Numbers of the segments in a folder, ascending; owned, free(). A missing folder is IFL_NOTFOUND.
 */
ifl_status ifl_rollout_segments(const char *folder, int32_t **numbers, int32_t *n, ifl_error *err);

#endif
