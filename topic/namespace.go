package topic

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
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
	// ChannelRegex, where set, is what the part behind the namespace must match.
	ChannelRegex string `koanf:"channel_regex"`
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
