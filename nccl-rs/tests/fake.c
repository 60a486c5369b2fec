/* A libnccl that computes nothing: it writes down what it is told and answers as the test asks. FAKE_VERSION says which
 * NCCL it plays; functions that this version lacks are not there. "Device" memory is host memory. */
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdarg.h>
#include <pthread.h>

typedef struct { char bytes[128]; } id_t128;
typedef struct { int rank, world, busy, async, alive, revoked; } comm_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char calls[1 << 16];
static size_t used;
static int busy_polls, async_error, fail_code, never_child, null_window;
static char fail_function[64];
static comm_t **late_child; static comm_t *late_value; static int late_polls = -1;

static void note(const char *format, ...) {
  va_list args;
  va_start(args, format);
  pthread_mutex_lock(&lock);
  used += vsnprintf(calls + used, sizeof calls - used, format, args);
  if (used + 1 < sizeof calls) { calls[used++] = '\n'; calls[used] = 0; }
  pthread_mutex_unlock(&lock);
  va_end(args);
}

/* How the test talks to the fake. */
const char *fake_calls(void) { return calls; }
void fake_clear(void) { used = 0; calls[0] = 0; }
void fake_busy(int polls) { busy_polls = polls; }
void fake_async(int code) { async_error = code; }
void fake_fail(const char *function, int code) { strncpy(fail_function, function, 63); fail_code = code; }
void fake_never_child(int yes) { never_child = yes; }
void fake_null_window(int yes) { null_window = yes; }

static int enter(const char *function) {
  if (fail_code && strcmp(function, fail_function) == 0) { int code = fail_code; fail_code = 0; return code; }
  return 0;
}
static int begin(comm_t *comm) { comm->busy = busy_polls; return comm->busy ? 7 : 0; }

int ncclGetVersion(int *version) { *version = FAKE_VERSION; return 0; }
const char *ncclGetErrorString(int code) { return code == 6 ? "remote process exited" : "some nccl error"; }
const char *ncclGetLastError(void *comm) { (void)comm; return "the last detail"; }
int ncclGetUniqueId(id_t128 *id) {
  int code = enter("ncclGetUniqueId"); if (code) return code;
  for (int i = 0; i < 128; i++) id->bytes[i] = (char)(i * 3 - 100);
  return 0;
}

static void note_config(const char *function, void *config) {
  if (!config) { note("%s config inherited", function); return; }
  struct { size_t size; unsigned magic, version; int blocking, cga, min, max; char *net; int split, traffic; char *name;
           int rest[10]; } c;
  memset(&c, 0xee, sizeof c);
  memcpy(&c.size, config, sizeof c.size);
  memcpy(&c, config, c.size < sizeof c ? c.size : sizeof c);
  note("%s config size=%zu magic=%x version=%u blocking=%d ctas=%d..%d net=%s name=%s", function, c.size, c.magic,
       c.version, c.blocking, c.min, c.max, c.net ? c.net : "-", c.size > 48 && c.name ? c.name : "-");
}

static comm_t *fresh(int rank, int world) {
  comm_t *comm = calloc(1, sizeof *comm);
  comm->rank = rank; comm->world = world; comm->alive = 1;
  return comm;
}

int ncclCommInitRankConfig(comm_t **comm, int world, id_t128 id, int rank, void *config) {
  int code = enter("ncclCommInitRankConfig"); if (code) return code;
  note("init world=%d rank=%d id=%d,%d", world, rank, id.bytes[0], id.bytes[127]);
  note_config("init", config);
  *comm = fresh(rank, world);
  return begin(*comm);
}
int ncclCommGetAsyncError(comm_t *comm, int *error) {
  if (late_polls > 0 && --late_polls == 0) { *late_child = late_value; late_polls = -1; }
  if (comm->busy > 0) { comm->busy--; *error = 7; } else *error = async_error;
  return 0;
}
int ncclCommCount(comm_t *comm, int *n) { *n = comm->world; return 0; }
int ncclCommUserRank(comm_t *comm, int *n) { *n = comm->rank; return 0; }
int ncclCommCuDevice(comm_t *comm, int *n) { (void)comm; *n = 3; return 0; }
int ncclCommFinalize(comm_t *comm) { int c = enter("ncclCommFinalize"); if (c) return c; note("finalize rank=%d", comm->rank); return begin(comm); }
int ncclCommDestroy(comm_t *comm) { note("destroy rank=%d", comm->rank); free(comm); return 0; }
int ncclCommAbort(comm_t *comm) { note("abort rank=%d", comm->rank); free(comm); return 0; }

/* A child appears only after the parent was polled often enough, from "another thread", as NCCL does it. */
static int child(comm_t *parent, comm_t **out, comm_t *value) {
  *out = NULL;
  if (never_child) { parent->busy = INT_MAX; return 7; }
  if (!busy_polls) { *out = value; return 0; }
  late_child = out; late_value = value; late_polls = busy_polls;
  parent->busy = busy_polls;
  return 7;
}
int ncclCommSplit(comm_t *comm, int color, int key, comm_t **out, void *config) {
  note("split color=%d key=%d", color, key);
  note_config("split", config);
  if (color == -1) { *out = NULL; return begin(comm); }
  return child(comm, out, fresh(0, 1));
}

int ncclAllReduce(const void *s, void *r, size_t n, int t, int op, comm_t *c, void *stream) {
  int code = enter("ncclAllReduce"); if (code) return code;
  note("all_reduce n=%zu t=%d op=%d stream=%p in_place=%d", n, t, op, stream, s == r); return begin(c);
}
int ncclReduce(const void *s, void *r, size_t n, int t, int op, int root, comm_t *c, void *stream) {
  (void)s; (void)stream; note("reduce n=%zu t=%d op=%d root=%d recv=%d", n, t, op, root, r != NULL); return begin(c);
}
int ncclBroadcast(const void *s, void *r, size_t n, int t, int root, comm_t *c, void *stream) {
  (void)stream; note("broadcast n=%zu t=%d root=%d in_place=%d", n, t, root, s == r); return begin(c);
}
int ncclReduceScatter(const void *s, void *r, size_t n, int t, int op, comm_t *c, void *stream) {
  (void)s; (void)r; (void)stream; note("reduce_scatter n=%zu t=%d op=%d", n, t, op); return begin(c);
}
int ncclAllGather(const void *s, void *r, size_t n, int t, comm_t *c, void *stream) {
  (void)s; (void)r; (void)stream; note("all_gather n=%zu t=%d", n, t); return begin(c);
}
static const char *base;
void fake_base(const char *b) { base = b; }
int ncclSend(const void *s, size_t n, int t, int peer, comm_t *c, void *stream) {
  (void)stream; int code = enter("ncclSend"); if (code) return code;
  note("send at=%ld n=%zu t=%d peer=%d", base ? (long)((const char *)s - base) : -1L, n, t, peer); return begin(c);
}
int ncclRecv(void *r, size_t n, int t, int peer, comm_t *c, void *stream) {
  (void)stream; note("recv at=%ld n=%zu t=%d peer=%d", base ? (long)((char *)r - base) : -1L, n, t, peer); return begin(c);
}
int ncclGroupStart(void) { note("group_start"); return 0; }
int ncclGroupEnd(void) { int c = enter("ncclGroupEnd"); note("group_end"); return c ? c : (busy_polls ? 7 : 0); }
int ncclCommRegister(comm_t *c, void *p, size_t n, void **h) { (void)c; (void)p; note("register bytes=%zu", n); *h = (void *)77; return 0; }
int ncclCommDeregister(comm_t *c, void *h) { (void)c; note("deregister %ld", (long)h); return 0; }
int ncclMemAlloc(void **p, size_t n) { note("mem_alloc %zu", n); *p = malloc(n); return 0; }
int ncclMemFree(void *p) { note("mem_free"); free(p); return 0; }

#if FAKE_VERSION >= 22203 
int ncclGroupSimulateEnd(void *info) {
  struct { size_t size; unsigned magic, version; float time; } *i = info;
  note("simulate size=%zu magic=%x", i->size, i->magic); i->time = 12.5f; return 0;
}
#endif
#if FAKE_VERSION >= 22304
int ncclCommInitRankScalable(comm_t **comm, int world, int rank, int n, id_t128 *ids, void *config) {
  note("init_scalable world=%d rank=%d ids=%d first=%d", world, rank, n, ids[0].bytes[0]);
  note_config("init", config); *comm = fresh(rank, world); return begin(*comm);
}
#endif
#if FAKE_VERSION >= 22703
int ncclCommShrink(comm_t *comm, int *list, int n, comm_t **out, void *config, int flags) {
  note("shrink n=%d first=%d flags=%d", n, list[0], flags); note_config("shrink", config);
  async_error = 0;
  return child(comm, out, fresh(comm->rank - 1, comm->world - n));
}
int ncclCommWindowRegister(comm_t *c, void *p, size_t n, void **w, int flags) {
  (void)p; note("window bytes=%zu flags=%d", n, flags); *w = null_window ? NULL : (void *)88; return begin(c);
}
int ncclCommWindowDeregister(comm_t *c, void *w) { (void)c; note("window_deregister %ld", (long)w); return 0; }
#endif
#if FAKE_VERSION >= 22803
int ncclAlltoAll(const void *s, void *r, size_t n, int t, comm_t *c, void *st) { (void)s; (void)r; (void)st; note("all_to_all n=%zu t=%d", n, t); return begin(c); }
int ncclGather(const void *s, void *r, size_t n, int t, int root, comm_t *c, void *st) { (void)s; (void)st; note("gather n=%zu t=%d root=%d recv=%d", n, t, root, r != NULL); return begin(c); }
int ncclScatter(const void *s, void *r, size_t n, int t, int root, comm_t *c, void *st) { (void)r; (void)st; note("scatter n=%zu t=%d root=%d send=%d", n, t, root, s != NULL); return begin(c); }
#endif
#if FAKE_VERSION >= 22807
int ncclCommRevoke(comm_t *c, int flags) { note("revoke flags=%d", flags); c->revoked = 1; return begin(c); }
#endif
#if FAKE_VERSION >= 22902
int ncclCommGetUniqueId(comm_t *c, id_t128 *id) { (void)c; memset(id, 9, sizeof *id); note("grow_id"); return 0; }
int ncclCommGrow(comm_t *c, int world, const id_t128 *id, int rank, comm_t **out, void *config) {
  note("grow old=%d world=%d id=%d rank=%d", c != NULL, world, id ? id->bytes[5] : -1, rank); note_config("grow", config);
  comm_t *value = fresh(c ? c->rank : rank, world);
  if (!c) { *out = value; return begin(value); }
  return child(c, out, value);
}
#endif
#if FAKE_VERSION >= 22907
int ncclCommSuspend(comm_t *c, int flags) { note("suspend flags=%d", flags); return begin(c); }
int ncclCommResume(comm_t *c) { note("resume"); return begin(c); }
int ncclCommMemStats(comm_t *c, int stat, uint64_t *v) { (void)c; *v = 1000 + stat; return 0; }
#endif
