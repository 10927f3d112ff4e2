package auth

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"strconv"
	"time"
)

// Claims are what a connect token says. Everything in it is a copy: nothing
// aliases the token that it was read from.
type Claims struct {
	// Subject is the user; empty: anonymous.
	Subject string
	// ID is the jti, Family the refresh-token family (sid) that the token was
	// issued with; both may be empty. A Revocation names one of them.
	ID     string
	Family string
	// ClientID is the client (device or backend) that the token was issued to, for
	// tokens from the token endpoint.
	ClientID string
	// ClientRevision is of that client's record in the registry; 0: it had none.
	ClientRevision uint64
	// ExpiresAt is when a session that connects with the token ends, in seconds
	// since 1970; 0: never. It is expire_at where that is given, else exp.
	ExpiresAt int64
	// TokenExpiresAt is exp, and IssuedAt iat; 0 where the token has none.
	TokenExpiresAt int64
	IssuedAt       int64
	// Info is shown to others in presence: a JSON text, or the bytes of b64info.
	Info []byte
	// Meta is a JSON object that peers never see.
	Meta []byte
	// Channels are topics to subscribe to, Subs the same with options of their
	// own.
	Channels []string
	Subs     []Sub
}

// Sub is a server-side subscription in a connect token.
type Sub struct {
	Topic string
	// Info takes the place of the token's for this topic; nil: none given.
	Info []byte
	// Data goes to the peer with the subscription.
	Data     []byte
	Override Override
	// ExpiresAt is when the subscription ends, in seconds since 1970; 0: never. No
	// token says it.
	ExpiresAt int64
}

// SubscriptionClaims are what a subscription token says. Nothing in it aliases
// the token.
type SubscriptionClaims struct {
	Subject string
	// Topic is the channel claim: what may be subscribed to.
	Topic string
	// Client, where set (a deprecated claim), is the only session that may use the
	// token, by its client id.
	Client string
	ID     string
	Family string
	// Info is JSON about the subscriber, shown to others.
	Info     []byte
	Override Override
	// ExpiresAt is when the subscription ends, in seconds since 1970; 0: never.
	ExpiresAt      int64
	TokenExpiresAt int64
	IssuedAt       int64
}

// fields are the claims as they stand in the payload: each slice aliases it
// and holds the text of a JSON value, nil where the claim is missing or null.
type fields struct {
	sub, jti, sid, iss, aud, client, clientID  []byte
	info, b64info, meta, channels, subs, topic []byte
	override, clientRev                        []byte
	exp, iat, nbf, expireAt                    date
}

type date struct {
	at  int64
	set bool
}

func (d *date) decode(raw []byte) error {
	if d.set {
		return errClaimDup
	}
	if string(raw) == "null" {
		return nil
	}
	at, err := numericDate(raw)
	d.at, d.set = at, true
	return err
}

// decode reads payload, which must be valid JSON.
func (f *fields) decode(payload []byte) error {
	m, ok := walkObject(payload)
	if !ok {
		return errNotObject
	}
	for {
		name, value, ok := m.next()
		if !ok {
			return nil
		}
		if err := f.set(name, value); err != nil {
			return err
		}
	}
}

func (f *fields) set(name, value []byte) error {
	var dst *[]byte
	kind := byte('"')
	switch string(name) {
	case "exp":
		return f.exp.decode(value)
	case "iat":
		return f.iat.decode(value)
	case "nbf":
		return f.nbf.decode(value)
	case "expire_at":
		return f.expireAt.decode(value)
	case "sub":
		dst = &f.sub
	case "jti":
		dst = &f.jti
	case "sid":
		dst = &f.sid
	case "iss":
		dst = &f.iss
	case "client":
		dst = &f.client
	case "client_id":
		dst = &f.clientID
	case "client_rev":
		dst, kind = &f.clientRev, 0
	case "channel":
		dst = &f.topic
	case "b64info":
		dst = &f.b64info
	case "aud":
		dst, kind = &f.aud, 0
	case "info":
		dst, kind = &f.info, 0
	case "meta":
		dst, kind = &f.meta, '{'
	case "subs":
		dst, kind = &f.subs, '{'
	case "override":
		dst, kind = &f.override, '{'
	case "channels":
		dst, kind = &f.channels, '['
	default:
		return nil
	}
	if *dst != nil {
		return errClaimDup
	}
	if string(value) == "null" {
		return nil
	}
	if kind != 0 && value[0] != kind {
		return errClaimType
	}
	*dst = value
	return nil
}

// audience reports whether aud names want: a string, or one of a list (RFC 7519
// section 4.1.3).
func (f *fields) audience(want string) bool {
	if len(f.aud) == 0 {
		return false
	}
	if f.aud[0] == '"' {
		return equalsString(f.aud, want)
	}
	list, err := stringList(f.aud)
	if err != nil {
		return false
	}
	for _, a := range list {
		if a == want {
			return true
		}
	}
	return false
}

// ends is when a session or subscription with these claims ends.
func (f *fields) ends() int64 {
	if f.expireAt.set {
		return f.expireAt.at
	}
	return f.exp.at
}

// expired reports whether the token, or what it would start, is over.
func (f *fields) expired(now time.Time) bool {
	at := now.Unix()
	if f.exp.set && f.exp.at <= at {
		return true
	}
	return f.expireAt.set && f.expireAt.at != 0 && f.expireAt.at <= at
}

// text copies a string claim; a missing one is empty.
func text(raw []byte, err *error) string {
	if raw == nil || *err != nil {
		return ""
	}
	s, e := unquote(raw)
	if e != nil {
		*err = e
	}
	return s
}

// infoOf copies info, or decodes b64info, which goes before it.
func infoOf(info, b64 []byte, err *error) []byte {
	if b64 != nil && *err == nil {
		s := text(b64, err)
		out, e := base64.StdEncoding.DecodeString(s)
		if e != nil && *err == nil {
			*err = errClaimType
		}
		if len(out) > 0 {
			return out
		}
	}
	return bytes.Clone(info)
}

func (f *fields) connect() (*Claims, error) {
	var err error
	if f.topic != nil {
		// A subscription token speaks for one topic. Where it also opened sessions,
		// whoever may hand out subscriptions could hand out identities.
		return nil, errSubscriptionToken
	}
	c := &Claims{
		Subject:        text(f.sub, &err),
		ID:             text(f.jti, &err),
		Family:         text(f.sid, &err),
		ClientID:       text(f.clientID, &err),
		ExpiresAt:      f.ends(),
		TokenExpiresAt: f.exp.at,
		IssuedAt:       f.iat.at,
		Info:           infoOf(f.info, f.b64info, &err),
		Meta:           bytes.Clone(f.meta),
	}
	if err == nil && f.clientRev != nil {
		if c.ClientRevision, err = strconv.ParseUint(string(f.clientRev), 10, 64); err != nil {
			err = errClaimType
		}
	}
	if err != nil {
		return nil, err
	}
	if f.channels != nil {
		if c.Channels, err = stringList(f.channels); err != nil {
			return nil, err
		}
	}
	if f.subs != nil {
		if c.Subs, err = decodeSubs(f.subs); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (f *fields) subscription() (*SubscriptionClaims, error) {
	var err error
	c := &SubscriptionClaims{
		Subject:        text(f.sub, &err),
		Topic:          text(f.topic, &err),
		Client:         text(f.client, &err),
		ID:             text(f.jti, &err),
		Family:         text(f.sid, &err),
		Info:           infoOf(f.info, f.b64info, &err),
		ExpiresAt:      f.ends(),
		TokenExpiresAt: f.exp.at,
		IssuedAt:       f.iat.at,
	}
	if err == nil && c.Topic == "" {
		err = errNoTopic
	}
	if err == nil {
		c.Override, err = decodeOverride(f.override)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

func decodeSubs(raw []byte) ([]Sub, error) {
	m, ok := walkObject(raw)
	if !ok {
		return nil, errClaimType
	}
	var subs []Sub
	seen := make(map[string]struct{})
	for {
		name, value, ok := m.next()
		if !ok {
			return subs, nil
		}
		sub := Sub{Topic: string(name)}
		if _, dup := seen[sub.Topic]; dup || sub.Topic == "" {
			return nil, errClaimDup
		}
		seen[sub.Topic] = struct{}{}
		if string(value) != "null" {
			if err := sub.decode(value); err != nil {
				return nil, err
			}
		}
		subs = append(subs, sub)
	}
}

func (s *Sub) decode(raw []byte) error {
	m, ok := walkObject(raw)
	if !ok {
		return errClaimType
	}
	var info, b64info, data, b64data, override []byte
	for {
		name, value, ok := m.next()
		if !ok {
			break
		}
		if string(value) == "null" {
			continue
		}
		switch string(name) {
		case "info":
			info = value
		case "b64info":
			b64info = value
		case "data":
			data = value
		case "b64data":
			b64data = value
		case "override":
			override = value
		}
	}
	var err error
	s.Info = infoOf(info, b64info, &err)
	s.Data = infoOf(data, b64data, &err)
	if err != nil {
		return err
	}
	s.Override, err = decodeOverride(override)
	return err
}

// Override is what a token says of one subscription in the place of its
// namespace; nil: nothing.
type Override struct {
	Presence           *bool
	JoinLeave          *bool
	ForcePushJoinLeave *bool
	ForceRecovery      *bool
	ForcePositioning   *bool
}

// decodeOverride reads the options that a token may override for a subscription.
// The older names of two give way to the newer ones.
func decodeOverride(raw []byte) (Override, error) {
	var o Override
	if raw == nil {
		return o, nil
	}
	m, ok := walkObject(raw)
	if !ok {
		return o, errClaimType
	}
	var recovery, positioning *bool
	flags := map[string]**bool{
		"presence": &o.Presence, "join_leave": &o.JoinLeave, "force_push_join_leave": &o.ForcePushJoinLeave,
		"force_recovery": &o.ForceRecovery, "recover": &recovery,
		"force_positioning": &o.ForcePositioning, "position": &positioning,
	}
	for {
		name, value, ok := m.next()
		if !ok {
			break
		}
		dst := flags[string(name)]
		if dst == nil {
			continue
		}
		if *dst != nil {
			return Override{}, errClaimDup
		}
		var err error
		if *dst, err = decodeFlag(value); err != nil {
			return Override{}, err
		}
	}
	o.ForceRecovery = cmp.Or(o.ForceRecovery, recovery)
	o.ForcePositioning = cmp.Or(o.ForcePositioning, positioning)
	return o, nil
}

// decodeFlag reads {"value": true}; nil of null.
func decodeFlag(raw []byte) (*bool, error) {
	if string(raw) == "null" {
		return nil, nil
	}
	m, ok := walkObject(raw)
	if !ok {
		return nil, errClaimType
	}
	on := new(bool)
	for {
		name, value, ok := m.next()
		if !ok {
			return on, nil
		}
		if string(name) != "value" {
			continue
		}
		switch string(value) {
		case "true":
			*on = true
		case "false", "null":
			*on = false
		default:
			return nil, errClaimType
		}
	}
}
