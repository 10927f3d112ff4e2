package perch

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"perch/auth"
)

// TokenRequest is what a token of IssueToken shall say.
type TokenRequest struct {
	// Subject is the user; empty: anonymous.
	Subject string
	// TTL is the token's life; 0: Options.Auth.TokenTTL.
	TTL time.Duration
	// Channels are topics that its sessions are subscribed to.
	Channels []string
	// Info is a JSON text that others see of the user; empty: none.
	Info []byte
}

// ErrTokenTTL: a token was asked for with a life below zero.
var ErrTokenTTL = errors.New("perch: token ttl below zero")

// IssueToken makes a connect token as a server of these options does, which
// need not run: with its configured keys, else with the one in Options.DataDir,
// which is made there if it is the first. It fails with ErrTokenTTL,
// auth.ErrNoSigningKey where the configured keys only verify, and
// auth.ErrIssueRequest where Info is not JSON. It reads files: not for a loop,
// else safe from any goroutine.
func IssueToken(opts Options, req TokenRequest) (string, error) {
	opts = opts.WithDefaults()
	if opts.Dev {
		opts = opts.WithDev()
	}
	if req.TTL < 0 {
		return "", ErrTokenTTL
	}
	ks := opts.keySetOptions(slog.New(slog.DiscardHandler))
	if ks.JWKSURL != "" {
		// The remote set only verifies: it is not fetched here. Without it the rule
		// that decides whether a key is made has to be kept up by hand.
		if ks.HMACSecret == "" && len(ks.Keys) == 0 && !ks.NeedSigner {
			return "", fmt.Errorf("perch: issue token: %w", auth.ErrNoSigningKey)
		}
		ks.JWKSURL = ""
	}
	keys, err := auth.NewKeySet(ks)
	if err != nil {
		return "", fmt.Errorf("perch: issue token: %w", err)
	}
	defer keys.Close()
	issue := auth.IssueRequest{Subject: req.Subject, TTL: req.TTL, Channels: req.Channels}
	if len(req.Info) > 0 {
		issue.Info = json.RawMessage(req.Info)
	}
	token, err := auth.NewIssuer(opts.issuerOptions(keys)).Issue(issue)
	if err != nil {
		return "", fmt.Errorf("perch: issue token: %w", err)
	}
	return token, nil
}

// keySetOptions are the keys of o: those of the server and of IssueToken alike.
// A signing key is needed where clients may ask for tokens.
func (o *Options) keySetOptions(log *slog.Logger) auth.KeySetOptions {
	keys := make([]auth.KeyOptions, len(o.Auth.Keys))
	for i, k := range o.Auth.Keys {
		keys[i] = auth.KeyOptions{ID: k.ID, File: k.File}
	}
	return auth.KeySetOptions{
		DataDir:     o.DataDir,
		HMACSecret:  o.Auth.HMACSecret,
		Keys:        keys,
		JWKSURL:     o.Auth.JWKSURL,
		JWKSRefresh: o.Auth.JWKSRefresh,
		NeedSigner:  len(o.Auth.Clients) > 0 || o.Engine == EngineNATS,
		Logger:      log,
	}
}

// issuerOptions are what o says of issued tokens.
func (o *Options) issuerOptions(keys *auth.KeySet) auth.IssuerOptions {
	return auth.IssuerOptions{Keys: keys, Issuer: o.Auth.Issuer, Audience: o.Auth.Audience, TTL: o.Auth.TokenTTL}
}
