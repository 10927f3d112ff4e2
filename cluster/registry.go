package cluster

import (
	"cmp"
	binheap "container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"perch/auth"
)

const (
	// cacheSize is how many records a node keeps at hand: a backend that asks for
	// many tokens, not a fleet.
	cacheSize = 4096
	// cacheTTL bounds how old a record may be where the watch lags behind.
	cacheTTL = 10 * time.Second
	// listedIDs is how many ids are kept of a walk through all of them, and listedTTL
	// for how long: whoever lists page after page comes back at once.
	listedIDs = 50_000
	listedTTL = 30 * time.Second
	// pageLoads is how many records of a page are asked for at once.
	pageLoads = 8
)

// RegistryStats are counts of a Registry.
type RegistryStats struct {
	Hits, Found, Unknown, Failed uint64 // lookups, by how they ended
}

// Registry keeps clients in a key-value bucket, for all nodes: an auth.Registry.
// Records are asked for when they are needed; a node keeps a few of them for some
// seconds, and forgets one as soon as any node has changed it.
type Registry struct {
	bucket *bucket
	tokens *Tokens

	life  context.Context
	end   context.CancelFunc
	group sync.WaitGroup

	keep time.Duration // a record, at most

	mu      sync.Mutex
	cache   map[string]cached
	changes uint64 // that were heard of: a record read before one may be older
	listed  *listing
	lapses  uint64   // how often nobody knows what has changed
	walks   int      // under way,
	written []string // and the ids that were written since the first of them began

	hits, found, unknown, failed atomic.Uint64
}

// listing are the ids behind one, in their order, that a walk has found; more:
// there were others behind them.
type listing struct {
	after string
	ids   []string
	more  bool
	until time.Time
}

// page returns the first limit ids behind after; ok is false where the listing does
// not know.
func (l *listing) page(after string, limit int, now time.Time) (ids []string, more, ok bool) {
	if l == nil || now.After(l.until) || after < l.after {
		return nil, false, false
	}
	i, at := slices.BinarySearch(l.ids, after)
	if at {
		i++
	}
	rest := l.ids[i:]
	if len(rest) > limit {
		return slices.Clone(rest[:limit]), true, true
	}
	return slices.Clone(rest), false, !l.more
}

// add puts in an id that was written, where it belongs there. One that is deleted
// stays: it is not found when it is asked for.
func (l *listing) add(id string) {
	if id <= l.after || l.more && (len(l.ids) == 0 || id > l.ids[len(l.ids)-1]) {
		return
	}
	if i, found := slices.BinarySearch(l.ids, id); !found {
		l.ids = slices.Insert(l.ids, i, id)
	}
}

type cached struct {
	record *auth.ClientRecord
	until  time.Time
}

var _ auth.Registry = (*Registry)(nil)

// NewRegistry makes the registry on a link; tokens are what its clients got. Start
// has it work.
func NewRegistry(l *Link, tokens *Tokens) *Registry {
	r := &Registry{bucket: newBucket(l, "clients"), tokens: tokens, keep: cacheTTL, cache: make(map[string]cached)}
	r.life, r.end = context.WithCancel(context.Background())
	return r
}

// Start opens the bucket: when it returns, changes of others are heard of. It waits
// as long as ctx lasts, and is called once.
func (r *Registry) Start(ctx context.Context) error {
	if err := r.bucket.open(ctx); err != nil {
		return err
	}
	if r.bucket.link.Alone() {
		return nil // nobody else writes there
	}
	// While the broker is away nobody knows what has become of a client.
	r.bucket.link.OnChange(nil, r.forgetAll)
	begun := make(chan struct{})
	first := sync.OnceFunc(func() { close(begun) })
	r.group.Go(func() { r.bucket.watch(r.life, r.watching(first)) })
	select {
	case <-begun:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.life.Done():
		return auth.ErrStoreClosed
	}
}

// watching is what keeps records at hand from growing old; caught is called when
// it begins.
func (r *Registry) watching(caught func()) watching {
	return watching{
		pattern: ">",
		// What was missed is not asked for: nothing that was read before is kept.
		begin:   func() uint64 { return 0 },
		begun:   r.forgetAll,
		each:    func(key string, _ jetstream.Msg, _ *jetstream.MsgMetadata) { r.forget(key) },
		caught:  caught,
		batch:   500,
		headers: true,
	}
}

// Close ends the work of the registry.
func (r *Registry) Close() {
	r.end()
	r.group.Wait()
}

// Stats are its counts. Safe from any goroutine.
func (r *Registry) Stats() RegistryStats {
	return RegistryStats{Hits: r.hits.Load(), Found: r.found.Load(), Unknown: r.unknown.Load(), Failed: r.failed.Load()}
}

func (r *Registry) forget(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes++
	delete(r.cache, key)
	id, ok := unkey(key)
	if n := len(r.written); ok && r.walks > 0 && (n == 0 || r.written[n-1] != id) {
		if r.written = append(r.written, id); n > 2*listedIDs {
			r.lapses++ // more than is worth keeping
			r.written = r.written[:n]
		}
	}
	if r.listed == nil {
		return
	}
	if ok {
		r.listed.add(id)
	}
	if len(r.listed.ids) > 2*listedIDs {
		r.listed = nil
	}
}

func (r *Registry) forgetAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes++
	r.lapses++
	clear(r.cache)
	r.listed = nil
}

// Get implements auth.Registry.
func (r *Registry) Get(ctx context.Context, id string) (*auth.ClientRecord, error) {
	key := keyOf(id)
	r.mu.Lock()
	c, ok := r.cache[key]
	changes := r.changes
	r.mu.Unlock()
	if ok && time.Now().Before(c.until) {
		r.hits.Add(1)
		return c.record, nil
	}
	record, err := r.Load(ctx, id)
	if err == nil {
		r.remember(key, record, changes)
	}
	return record, err
}

// remember keeps a record, unless something has changed since it was asked for.
func (r *Registry) remember(key string, record *auth.ClientRecord, changes uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.changes != changes {
		return
	}
	for old := range r.cache { // any one
		if len(r.cache) < cacheSize {
			break
		}
		delete(r.cache, old)
	}
	r.cache[key] = cached{record, time.Now().Add(r.keep)}
}

// Load implements auth.Registry.
func (r *Registry) Load(ctx context.Context, id string) (*auth.ClientRecord, error) {
	record, err := r.load(ctx, id)
	switch {
	case errors.Is(err, auth.ErrClientUnknown):
		r.unknown.Add(1)
	case err != nil:
		r.failed.Add(1)
	default:
		r.found.Add(1)
	}
	return record, err
}

func (r *Registry) load(ctx context.Context, id string) (*auth.ClientRecord, error) {
	data, revision, err := r.bucket.get(ctx, keyOf(id))
	if errors.Is(err, errNoKey) {
		return nil, auth.ErrClientUnknown
	}
	if err != nil {
		return nil, unavailable(ctx, err)
	}
	record, err := auth.DecodeClientRecord(data)
	if err != nil || record.ID != id {
		return nil, fmt.Errorf("cluster: client %q: %w", id, auth.ErrClientRecord)
	}
	record.Revision = revision
	return record, nil
}

// unavailable is an error of a bucket in the words of package auth.
func unavailable(ctx context.Context, err error) error {
	if e := ctx.Err(); e != nil {
		return e
	}
	return fmt.Errorf("%w: %w", auth.ErrUnavailable, err)
}

// Put implements auth.Registry.
func (r *Registry) Put(ctx context.Context, record *auth.ClientRecord) error {
	data, err := record.Encode()
	if err != nil {
		return err
	}
	key, revision, taken := keyOf(record.ID), record.Revision, auth.ErrClientChanged
	if revision == 0 {
		taken = auth.ErrClientExists
		// One that was deleted a moment ago has left a mark.
		_, mark, err := r.bucket.get(ctx, key)
		switch {
		case err == nil:
			return taken
		case !errors.Is(err, errNoKey):
			return unavailable(ctx, err)
		}
		revision = mark
	}
	revision, err = r.bucket.put(ctx, key, data, revision, 0)
	r.forget(key)
	switch {
	case errors.Is(err, errRevision):
		return taken
	case err != nil:
		return unavailable(ctx, err)
	}
	record.Revision = revision
	return nil
}

// Remove implements auth.Registry.
func (r *Registry) Remove(ctx context.Context, id string, revision uint64) error {
	key := keyOf(id)
	err := r.bucket.remove(ctx, key, revision)
	r.forget(key)
	switch {
	case errors.Is(err, errRevision):
		return auth.ErrClientChanged
	case err != nil:
		return unavailable(ctx, err)
	}
	return nil
}

// EndTokens implements auth.Registry.
func (r *Registry) EndTokens(_ context.Context, client string, revision uint64, until int64) error {
	err := r.tokens.RevokeClient(client, revision, until)
	if errors.Is(err, auth.ErrStoreWrite) {
		return fmt.Errorf("%w: %w", auth.ErrUnavailable, err)
	}
	return err
}

// List implements auth.Registry.
func (r *Registry) List(ctx context.Context, after string, limit int) ([]*auth.ClientRecord, bool, error) {
	for {
		ids, more, err := r.page(ctx, after, limit)
		if err != nil {
			return nil, false, err
		}
		list, err := r.loadAll(ctx, ids)
		if err != nil || len(list) > 0 || !more {
			return list, more, err
		}
		after = ids[len(ids)-1] // all of them were deleted meanwhile
	}
}

// loadAll returns the records of ids that there are.
func (r *Registry) loadAll(ctx context.Context, ids []string) ([]*auth.ClientRecord, error) {
	records := make([]*auth.ClientRecord, len(ids))
	errs := make([]error, len(ids))
	var group sync.WaitGroup
	places := make(chan struct{}, pageLoads)
	for i, id := range ids {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			records[i], errs[i] = r.load(ctx, id)
		})
	}
	group.Wait()
	list := records[:0]
	for i, record := range records {
		switch err := errs[i]; {
		case err == nil:
			list = append(list, record)
		case errors.Is(err, auth.ErrClientUnknown): // deleted meanwhile
		case errors.Is(err, auth.ErrClientRecord):
			r.bucket.link.log.Error("record of a client can't be read", "err", err)
		default:
			return nil, err
		}
	}
	return list, nil
}

// page returns the first limit ids behind after, in their order.
func (r *Registry) page(ctx context.Context, after string, limit int) (ids []string, more bool, err error) {
	r.mu.Lock()
	ids, more, ok := r.listed.page(after, limit, time.Now())
	if ok {
		r.mu.Unlock()
		return ids, more, nil
	}
	r.walks++
	lapses, from := r.lapses, len(r.written)
	r.mu.Unlock()
	ids, more, err = r.walk(ctx, after, max(limit, listedIDs))
	r.mu.Lock()
	defer r.mu.Unlock()
	written := r.written[from:]
	if r.walks--; r.walks == 0 {
		r.written = nil
	}
	if err != nil {
		return nil, false, err
	}
	l := &listing{after: after, ids: ids, more: more, until: time.Now().Add(listedTTL)}
	ids, more, _ = l.page(after, limit, time.Now())
	if r.lapses == lapses && len(written) <= listedIDs {
		for _, id := range written { // the walk may lack it
			l.add(id)
		}
		r.listed = l
	}
	return ids, more, nil
}

// walk goes through the keys of the whole bucket, about 4 µs each, and returns the
// first limit ids behind after, in their order.
func (r *Registry) walk(ctx context.Context, after string, limit int) (ids []string, more bool, err error) {
	var first idHeap
	in := make(map[string]struct{}) // of first: what is written meanwhile comes twice
	done, err := r.bucket.follow(ctx, watching{
		pattern: ">", headers: true, once: true, batch: 10_000,
		begin:  func() uint64 { return 1 },
		caught: func() {},
		each: func(key string, m jetstream.Msg, _ *jetstream.MsgMetadata) {
			id, ok := unkey(key)
			if _, again := in[id]; !ok || again || id <= after || marked(m.Headers()) {
				return
			}
			switch {
			case len(first) <= limit: // one more than the page tells whether there are others
				binheap.Push(&first, id)
			case id < first[0]:
				delete(in, first[0])
				first[0] = id
				binheap.Fix(&first, 0)
			default:
				return
			}
			in[id] = struct{}{}
		},
	})
	if !done {
		return nil, false, unavailable(ctx, cmp.Or(err, ErrUnavailable))
	}
	ids = slices.Sorted(slices.Values(first))
	if more = len(ids) > limit; more {
		ids = ids[:limit]
	}
	return ids, more, nil
}

// idHeap has the greatest id on top.
type idHeap []string

func (h idHeap) Len() int           { return len(h) }
func (h idHeap) Less(i, j int) bool { return h[i] > h[j] }
func (h idHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *idHeap) Push(x any)        { *h = append(*h, x.(string)) }
func (h *idHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
