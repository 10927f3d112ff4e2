package auth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/MicahParks/jwkset"
	"github.com/MicahParks/keyfunc/v3"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/time/rate"
)

const (
	remoteRefresh = 5 * time.Minute // unless configured
	remoteTimeout = 5 * time.Second // of one fetch
	remoteBody    = 1 << 20         // bytes of a key set, at most
	remoteKeysMax = 64              // keys used of a set; a token without kid is tried with each
	remoteUnknown = 10 * time.Second
	remoteRetry   = time.Second // after a first failure; doubled up to the refresh
	remoteWaiters = 16          // tokens that wait for one fetch
)

// remoteKeys is a remote JSON Web Key Set: kept, asked again in the background,
// and asked in between for a kid that it did not have, at most once in 10 s. A
// fetch that fails, or brings nothing usable, leaves the last good set as it
// is. It is the storage that keyfunc reads.
type remoteKeys struct {
	*jwkset.MemoryJWKSet
	keyfunc keyfunc.Keyfunc

	url     string
	refresh time.Duration
	client  *http.Client
	log     *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	unknown *rate.Limiter
	loaded  bool
	failing bool
	current *fetch // nil: none under way
	waiters int
}

// fetch is one request to the remote set. err is set before done is closed.
type fetch struct {
	done chan struct{}
	err  error
}

func newRemoteKeys(rawURL string, refresh time.Duration, log *slog.Logger) (*remoteKeys, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("not an http or https address")
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns = 1
	transport.MaxResponseHeaderBytes = 64 << 10
	r := &remoteKeys{
		MemoryJWKSet: jwkset.NewMemoryStorage(),
		url:          rawURL,
		refresh:      refreshOf(refresh),
		client:       &http.Client{Transport: transport, Timeout: remoteTimeout},
		log:          log,
		unknown:      rate.NewLimiter(rate.Every(remoteUnknown), 1),
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	if r.keyfunc, err = keyfunc.New(keyfunc.Options{Ctx: r.ctx, Storage: r}); err != nil {
		r.cancel()
		return nil, err
	}
	// The first fetch is under way when the first token asks; start does not wait.
	first := r.start()
	r.wg.Go(func() { r.run(first) })
	return r, nil
}

func refreshOf(d time.Duration) time.Duration {
	if d <= 0 {
		return remoteRefresh
	}
	return d
}

func (r *remoteKeys) close() {
	r.mu.Lock() // no fetch begins once the context has ended
	r.cancel()
	r.mu.Unlock()
	r.wg.Wait()
	r.client.CloseIdleConnections()
}

// run asks again, every refresh while it goes well, sooner after a failure.
func (r *remoteKeys) run(f *fetch) {
	retry := remoteRetry
	for {
		select {
		case <-f.done:
		case <-r.ctx.Done():
			return
		}
		wait := r.refresh
		if f.err != nil {
			wait = min(retry, r.refresh)
			retry = min(2*retry, r.refresh)
		} else {
			retry = remoteRetry
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-r.ctx.Done():
			timer.Stop()
			return
		}
		f = r.start()
	}
}

// start begins a fetch, or returns the one that is under way.
func (r *remoteKeys) start() *fetch {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.startLocked()
}

func (r *remoteKeys) startLocked() *fetch {
	if r.current != nil {
		return r.current
	}
	f := &fetch{done: make(chan struct{})}
	if f.err = r.ctx.Err(); f.err != nil {
		close(f.done)
		return f
	}
	r.current = f
	r.wg.Go(func() {
		f.err = r.fetch()
		r.mu.Lock()
		r.current = nil
		wasFailing := r.failing
		r.failing = f.err != nil
		r.loaded = r.loaded || f.err == nil
		r.mu.Unlock()
		switch {
		case r.ctx.Err() != nil:
		case f.err != nil:
			r.log.Warn("remote key set not refreshed", "err", f.err)
		case wasFailing:
			r.log.Info("remote key set refreshed again")
		}
		close(f.done)
	})
	return f
}

// fetch asks once and takes the answer's keys in the place of the old ones.
func (r *remoteKeys) fetch() error {
	ctx, cancel := context.WithTimeout(r.ctx, remoteTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, remoteBody+1))
	if err != nil {
		return err
	}
	if len(body) > remoteBody {
		return fmt.Errorf("key set over %d bytes", remoteBody)
	}
	keys, err := usableKeys(body)
	if err != nil {
		return err
	}
	return r.KeyReplaceAll(ctx, keys)
}

// usableKeys reads a key set and leaves out what verifies no token of ours:
// symmetric keys above all, so that no remote party can give us an HMAC secret.
func usableKeys(body []byte) ([]jwkset.JWK, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil {
		return nil, fmt.Errorf("decode key set: %w", err)
	}
	var keys []jwkset.JWK
	for _, raw := range set.Keys {
		var m jwkset.JWKMarshal
		if json.Unmarshal(raw, &m) != nil || m.USE != "" && m.USE != jwkset.UseSig {
			continue
		}
		// Only the key itself: certificates and their addresses are not followed.
		m = jwkset.JWKMarshal{KTY: m.KTY, USE: m.USE, ALG: m.ALG, KID: m.KID, CRV: m.CRV, X: m.X, Y: m.Y, N: m.N, E: m.E}
		switch m.KTY {
		case jwkset.KtyRSA, jwkset.KtyEC, jwkset.KtyOKP:
		default:
			continue
		}
		k, err := jwkset.NewJWKFromMarshal(m, jwkset.JWKMarshalOptions{}, jwkset.JWKValidateOptions{})
		if err != nil || checkPublic(k.Key()) != nil {
			continue
		}
		if keys = append(keys, k); len(keys) == remoteKeysMax {
			break
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("key set holds no usable key")
	}
	return keys, nil
}

// demand waits for a fetch that begins now or is under way. It fails with
// ErrKeysUnavailable where none may begin yet, or the fetch failed.
func (r *remoteKeys) demand(ctx context.Context) error {
	r.mu.Lock()
	f := r.current
	if f == nil {
		if !r.unknown.Allow() {
			r.mu.Unlock()
			return ErrKeysUnavailable
		}
		f = r.startLocked()
	}
	// The pool's workers wait here: a slow key set must not hold all of them.
	if r.waiters >= remoteWaiters {
		r.mu.Unlock()
		return ErrKeysUnavailable
	}
	r.waiters++
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.waiters--
		r.mu.Unlock()
	}()
	select {
	case <-f.done:
		if f.err != nil {
			return ErrKeysUnavailable
		}
		return nil
	case <-ctx.Done():
		return ErrKeysUnavailable
	case <-r.ctx.Done():
		return ErrKeysUnavailable
	}
}

// KeyRead is jwkset.Storage's: it asks the remote set for a kid that is not
// known.
func (r *remoteKeys) KeyRead(ctx context.Context, kid string) (jwkset.JWK, error) {
	k, err := r.MemoryJWKSet.KeyRead(ctx, kid)
	if err == nil {
		return k, nil
	}
	if err := r.demand(ctx); err != nil {
		return jwkset.JWK{}, err
	}
	return r.MemoryJWKSet.KeyRead(ctx, kid)
}

// KeyReadAll is jwkset.Storage's, for tokens without a kid.
func (r *remoteKeys) KeyReadAll(ctx context.Context) ([]jwkset.JWK, error) {
	r.mu.Lock()
	loaded := r.loaded
	r.mu.Unlock()
	if !loaded {
		if err := r.demand(ctx); err != nil {
			return nil, err
		}
	}
	return r.MemoryJWKSet.KeyReadAll(ctx)
}

// candidates are the remote keys that may have signed t.
func (r *remoteKeys) candidates(ctx context.Context, h header, t *jwt.Token) ([]jwt.VerificationKey, error) {
	if h.kid == "" {
		delete(t.Header, jwkset.HeaderKID) // an empty kid names nothing
	}
	got, err := r.keyfunc.KeyfuncCtx(ctx)(t)
	if err != nil {
		if errors.Is(err, ErrKeysUnavailable) {
			err = ErrKeysUnavailable
		} else {
			err = nil // no such key, or of another algorithm
		}
		return nil, err
	}
	set, ok := got.(jwt.VerificationKeySet)
	if !ok {
		set.Keys = []jwt.VerificationKey{got}
	}
	var out []jwt.VerificationKey
	for _, k := range set.Keys {
		if fits(h.alg, k) {
			out = append(out, k)
		}
	}
	return out, nil
}
