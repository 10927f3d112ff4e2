package auth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"time"
)

var (
	// ErrUnavailable: what is asked for stands elsewhere, and can't be reached now.
	ErrUnavailable = errors.New("auth: registry unavailable")
	// ErrNoRegistry: clients stand in the configuration alone.
	ErrNoRegistry = errors.New("auth: no registry of clients")
	// ErrClientExists: the id is taken.
	ErrClientExists = errors.New("auth: client exists")
	// ErrClientChanged: the client is not any more as whoever wants to change it has
	// seen it.
	ErrClientChanged = errors.New("auth: client has changed")
	// ErrClientConfigured: the client stands in the configuration, and changes there.
	ErrClientConfigured = errors.New("auth: client is configured")
	// ErrClientRecord: what the registry holds of the client can't be read.
	ErrClientRecord = errors.New("auth: bad client record")
)

// Registry keeps the clients that are not configured. It waits for a disk or a
// network: not for a loop. All fail with ErrUnavailable, or the error of ctx.
// Safe from any goroutine; nobody changes a record that it has returned.
type Registry interface {
	// Get returns the record of id, which may be some moments old, or
	// ErrClientUnknown. It is for who has logged in with the secret before.
	Get(ctx context.Context, id string) (*ClientRecord, error)
	// Load returns the record of id as it is now, or ErrClientUnknown.
	Load(ctx context.Context, id string) (*ClientRecord, error)
	// List returns up to limit records whose ids come after an id, in their order;
	// more: there are others behind them.
	List(ctx context.Context, after string, limit int) (list []*ClientRecord, more bool, err error)
	// Put writes r in the place of the record of r.Revision, 0: of none, and sets the
	// new one. It fails with ErrClientExists and ErrClientChanged.
	Put(ctx context.Context, r *ClientRecord) error
	// Remove takes out the record of that revision, or fails with ErrClientChanged.
	Remove(ctx context.Context, id string, revision uint64) error
	// EndTokens ends the refresh tokens of a client and, until then, the access
	// tokens that it got for a record older than revision: everywhere, at once. It
	// fails with ErrStoreFull as well.
	EndTokens(ctx context.Context, client string, revision uint64, until int64) error
}

// ClientRecord is a client as a registry keeps it: a JSON object.
type ClientRecord struct {
	ID         string          `json:"id"`
	SecretHash string          `json:"secret_hash"`
	User       string          `json:"user,omitempty"` // empty: ID
	AnyUser    bool            `json:"any_user,omitempty"`
	Channels   []string        `json:"channels,omitempty"`
	TokenTTL   int64           `json:"token_ttl,omitempty"`   // seconds; 0: the configured one
	RefreshTTL int64           `json:"refresh_ttl,omitempty"` // the same; negative: no refresh tokens
	Metadata   json.RawMessage `json:"metadata,omitempty"`    // an object
	Disabled   bool            `json:"disabled,omitempty"`
	Created    int64           `json:"created"` // seconds since 1970
	Updated    int64           `json:"updated"`

	// Floor is what its tokens are measured by: those that were issued for a record
	// of a smaller revision are of before it was disabled.
	Floor uint64 `json:"floor,omitempty"`
	// LongestTTL is the longest life, in seconds, that its access tokens have had.
	LongestTTL int64 `json:"longest_ttl,omitempty"`

	// Revision is the registry's: another one after each change.
	Revision uint64 `json:"-"`
}

const (
	maxClientID  = 128
	maxChannels  = 128
	maxMetadata  = 8 << 10
	maxClientTTL = 10 * 365 * 24 * time.Hour
	minSecret    = 8
	madeSecret   = 32 // bytes
	madeID       = 12
)

// registryID is what an id may look like: fit for a path, a log and Basic.
var registryID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:@+~-]{0,127}$`)

// Encode is the record as it is kept.
func (r *ClientRecord) Encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	// Metadata stays as long as it is: over its bound it could not be read again.
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return nil, fmt.Errorf("auth: encode client record: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// DecodeClientRecord reads what Encode wrote. It fails with ErrClientRecord,
// which repeats nothing of it.
func DecodeClientRecord(data []byte) (*ClientRecord, error) {
	var r ClientRecord
	if json.Unmarshal(data, &r) != nil || !registryID.MatchString(r.ID) {
		return nil, ErrClientRecord
	}
	if err := CheckSecretHash(r.SecretHash); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrClientRecord, err)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("%w: %s", ErrClientRecord, err.Field)
	}
	return &r, nil
}

// FieldError says which field of a request is wrong, and how.
type FieldError struct{ Field, Text string }

func (e *FieldError) Error() string { return fmt.Sprintf("auth: %s %s", e.Field, e.Text) }

func (r *ClientRecord) check() *FieldError {
	if !registryID.MatchString(r.ID) {
		return &FieldError{"id", fmt.Sprintf("must be 1 to %d of letters, digits and . _ : @ + ~ -, the first a letter or a digit", maxClientID)}
	}
	if r.User != "" && !printableName(r.User) {
		return &FieldError{"user", fmt.Sprintf("must be printable and of at most %d bytes", maxSubject)}
	}
	if len(r.Channels) > maxChannels {
		return &FieldError{"channels", fmt.Sprintf("are more than %d", maxChannels)}
	}
	most := int64(maxClientTTL / time.Second)
	if r.TokenTTL < 0 || r.TokenTTL > most {
		return &FieldError{"token_ttl", fmt.Sprintf("must be seconds, 1 to %d, or 0 for the configured one", most)}
	}
	if r.RefreshTTL > most || r.RefreshTTL < -most {
		return &FieldError{"refresh_ttl", fmt.Sprintf("must be seconds, 1 to %d, 0 for the configured one, or -1 for none", most)}
	}
	if r.LongestTTL < 0 || r.LongestTTL > most {
		return &FieldError{"longest_ttl", "is out of bounds"}
	}
	if r.Metadata != nil {
		if m := bytes.TrimSpace(r.Metadata); len(m) > maxMetadata || len(m) == 0 || m[0] != '{' || !validJSON(m) {
			return &FieldError{"metadata", fmt.Sprintf("must be a JSON object of at most %d bytes", maxMetadata)}
		}
	}
	return nil
}

// client is what the token endpoint works with.
func (r *ClientRecord) client() (*Client, error) {
	hash, err := parseSecretHash(r.SecretHash)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrClientRecord, err)
	}
	c := &Client{
		ClientOptions: ClientOptions{
			ID: r.ID, SecretHash: r.SecretHash, User: r.User, AnyUser: r.AnyUser, Channels: r.Channels,
			TokenTTL: time.Duration(r.TokenTTL) * time.Second, RefreshTTL: time.Duration(r.RefreshTTL) * time.Second,
		},
		Revision: r.Revision, Floor: r.Floor, disabled: r.Disabled, hash: hash,
	}
	if c.User == "" {
		c.User = c.ID
	}
	return c, nil
}
