package topic

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// NamespaceOptions are the rules of the topics of one namespace. The names are
// those that users of Centrifugo know.
type NamespaceOptions struct {
	// Name is what stands before the first ':' of the topics; empty for the
	// default options.
	Name string `koanf:"name"`
	// AllowSubscribeForClient lets every authenticated client subscribe.
	AllowSubscribeForClient bool `koanf:"allow_subscribe_for_client"`
	// AllowSubscribeForAnonymous extends that to clients without a user.
	AllowSubscribeForAnonymous bool `koanf:"allow_subscribe_for_anonymous"`
	// AllowPublishForClient lets every authenticated client publish.
	AllowPublishForClient bool `koanf:"allow_publish_for_client"`
	// AllowPublishForSubscriber lets a client publish to what it is subscribed to.
	AllowPublishForSubscriber bool `koanf:"allow_publish_for_subscriber"`
	// AllowPublishForAnonymous extends the two to clients without a user.
	AllowPublishForAnonymous bool `koanf:"allow_publish_for_anonymous"`
	// AllowUserLimitedChannels lets the users named behind a '#' subscribe, whatever
	// else the namespace allows.
	AllowUserLimitedChannels bool `koanf:"allow_user_limited_channels"`
	// SubscribeProxyEnabled asks the backend about subscriptions of clients that bring
	// no token, whatever else the namespace allows, PublishProxyEnabled about their
	// publications, SubRefreshProxyEnabled whether a subscription that has come to
	// its end goes on.
	SubscribeProxyEnabled  bool `koanf:"subscribe_proxy_enabled"`
	PublishProxyEnabled    bool `koanf:"publish_proxy_enabled"`
	SubRefreshProxyEnabled bool `koanf:"sub_refresh_proxy_enabled"`
	// ChannelRegex, where set, is what the part behind the namespace must match.
	ChannelRegex string `koanf:"channel_regex"`

	// HistorySize is how many publications a topic keeps, and HistoryTTL for how
	// long; history is on where both are set.
	HistorySize int           `koanf:"history_size"`
	HistoryTTL  time.Duration `koanf:"history_ttl"`
	// HistoryMetaTTL is how long a topic that is not used keeps its epoch and its
	// top offset; 0: as Options.MetaTTL says. It is at least HistoryTTL.
	HistoryMetaTTL time.Duration `koanf:"history_meta_ttl"`
	// AllowHistoryForSubscriber, …ForClient and …ForAnonymous say who may read it.
	AllowHistoryForSubscriber bool `koanf:"allow_history_for_subscriber"`
	AllowHistoryForClient     bool `koanf:"allow_history_for_client"`
	AllowHistoryForAnonymous  bool `koanf:"allow_history_for_anonymous"`

	// ForcePositioning and ForceRecovery are for all subscriptions, AllowPositioning
	// and AllowRecovery for those whose clients ask.
	ForcePositioning bool `koanf:"force_positioning"`
	AllowPositioning bool `koanf:"allow_positioning"`
	ForceRecovery    bool `koanf:"force_recovery"`
	AllowRecovery    bool `koanf:"allow_recovery"`
	// ForceRecoveryMode is RecoverStream (also where it is empty) or RecoverCache.
	ForceRecoveryMode string `koanf:"force_recovery_mode"`
	// AutoCacheRecover hands the latest publication also to a subscriber that does
	// not ask for recovery, in RecoverCache.
	AutoCacheRecover bool `koanf:"auto_cache_recover"`

	// Presence lets be asked who is subscribed.
	Presence                   bool `koanf:"presence"`
	AllowPresenceForSubscriber bool `koanf:"allow_presence_for_subscriber"`
	AllowPresenceForClient     bool `koanf:"allow_presence_for_client"`
	AllowPresenceForAnonymous  bool `koanf:"allow_presence_for_anonymous"`
	// JoinLeave tells those who ask for it of those who come and go, and
	// ForcePushJoinLeave all subscribers.
	JoinLeave          bool `koanf:"join_leave"`
	ForcePushJoinLeave bool `koanf:"force_push_join_leave"`

	// AllowedDeltaTypes are the deltas that a client may ask for: DeltaFossil.
	AllowedDeltaTypes []string `koanf:"allowed_delta_types"`
	// DeltaPublish makes a delta of each publication, not only of those that ask.
	DeltaPublish bool `koanf:"delta_publish"`
}

// The values of force_recovery_mode.
const (
	RecoverStream = "stream" // what was missed
	RecoverCache  = "cache"  // the latest publication
)

// DeltaFossil is the one kind of delta: that of the Fossil version control.
const DeltaFossil = "fossil"

// maxHistorySize bounds what one answer or one recovery has to go through.
const maxHistorySize = 1 << 20

// History tells whether topics keep their publications.
func (o *NamespaceOptions) History() bool { return o.HistorySize > 0 && o.HistoryTTL > 0 }

// Cache tells whether a subscriber is handed the latest publication.
func (o *NamespaceOptions) Cache() bool { return o.ForceRecoveryMode == RecoverCache }

// Delta tells whether a client may ask for a kind of delta.
func (o *NamespaceOptions) Delta(kind string) bool {
	return kind != "" && slices.Contains(o.AllowedDeltaTypes, kind)
}

// Namespace is a NamespaceOptions made ready. It does not change.
type Namespace struct {
	NamespaceOptions
	pattern *regexp.Regexp
}

// Separator stands between a namespace and the rest of a topic's name.
const Separator = ":"

// ErrUnknownTopic is returned for a topic whose namespace is not configured or
// whose name its namespace does not allow.
var ErrUnknownTopic = errors.New("topic: unknown topic")

var namespaceName = regexp.MustCompile(`^[-a-zA-Z0-9_.]{2,}$`)

// Check tells what is wrong with the options, or nil.
func (o *NamespaceOptions) Check() error {
	if o.Name != "" && !namespaceName.MatchString(o.Name) {
		return fmt.Errorf("name: %q must be two or more of letters, digits, '-', '_', '.'", o.Name)
	}
	if _, err := regexp.Compile(o.ChannelRegex); err != nil {
		return fmt.Errorf("channel_regex: %w", err)
	}
	switch {
	case o.HistorySize < 0 || o.HistorySize > maxHistorySize:
		return fmt.Errorf("history_size: %d must be from 0 to %d", o.HistorySize, maxHistorySize)
	case o.HistoryTTL < 0:
		return fmt.Errorf("history_ttl: %s must not be below 0", o.HistoryTTL)
	case (o.HistorySize > 0) != (o.HistoryTTL > 0):
		return errors.New("history_size and history_ttl: set both, or neither")
	case o.HistoryMetaTTL < 0 || o.HistoryMetaTTL > 0 && o.HistoryMetaTTL < o.HistoryTTL:
		return fmt.Errorf("history_meta_ttl: %s must not be below history_ttl", o.HistoryMetaTTL)
	case (o.ForcePositioning || o.AllowPositioning || o.ForceRecovery || o.AllowRecovery) && !o.History():
		return errors.New("recovery and positioning need history_size and history_ttl")
	case o.ForceRecoveryMode != "" && o.ForceRecoveryMode != RecoverStream && o.ForceRecoveryMode != RecoverCache:
		return fmt.Errorf("force_recovery_mode: %q must be %q or %q", o.ForceRecoveryMode, RecoverStream, RecoverCache)
	case o.AutoCacheRecover && !(o.Cache() && (o.ForceRecovery || o.AllowRecovery)):
		return fmt.Errorf("auto_cache_recover: needs force_recovery_mode: %s and recovery", RecoverCache)
	case o.ForcePushJoinLeave && !o.JoinLeave:
		return errors.New("force_push_join_leave: needs join_leave")
	}
	for _, kind := range o.AllowedDeltaTypes {
		if kind != DeltaFossil {
			return fmt.Errorf("allowed_delta_types: %q must be %q", kind, DeltaFossil)
		}
	}
	return nil
}

func newNamespace(o NamespaceOptions) (*Namespace, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	n := &Namespace{NamespaceOptions: o}
	if o.ChannelRegex != "" {
		n.pattern = regexp.MustCompile(o.ChannelRegex)
	}
	return n, nil
}

// namespaceOf splits a topic's name. The private prefix '$' is not part of the
// namespace.
func namespaceOf(name string) (namespace, rest string) {
	n := strings.TrimPrefix(name, "$")
	ns, rest, ok := strings.Cut(n, Separator)
	// Behind a '#' stand users, whose names may have a ':'.
	if !ok || strings.Contains(ns, "#") {
		return "", name
	}
	return ns, rest
}

// NamespaceOf is the name of the namespace that a topic belongs to, "" for those
// without one. It does not tell whether there is such a namespace.
func NamespaceOf(name string) string {
	ns, _ := namespaceOf(name)
	return ns
}

// rules are the namespaces that hold. They don't change.
type rules struct {
	fallback   *Namespace // of topics without a namespace
	namespaces map[string]*Namespace
}

// SetNamespaces puts other namespaces in the place of those that hold; each
// command looks its namespace up once, and so meets the old or the new one. It
// is for permissions and for further namespaces: what topics with subscribers
// keep (histories, positions, presence) is as it was when they subscribed. An
// error changes nothing. Safe from any goroutine.
func (t *Topics) SetNamespaces(def NamespaceOptions, list []NamespaceOptions) error {
	r := &rules{namespaces: make(map[string]*Namespace, len(list))}
	var err error
	if r.fallback, err = newNamespace(def); err != nil {
		return fmt.Errorf("topic: default: %w", err)
	}
	for _, o := range list {
		ns, err := newNamespace(o)
		if err != nil {
			return fmt.Errorf("topic: namespace %q: %w", o.Name, err)
		}
		if o.Name == "" || r.namespaces[o.Name] != nil {
			return fmt.Errorf("topic: namespace %q is empty or named twice", o.Name)
		}
		r.namespaces[o.Name] = ns
	}
	t.rules.Store(r)
	all := []*Namespace{r.fallback}
	for _, ns := range r.namespaces {
		all = append(all, ns)
	}
	t.broker.SetNamespaces(all)
	return nil
}
