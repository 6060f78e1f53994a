package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
)

// firstSync prints how long a Pod cache takes from no client to synced, and how many Pods are in it;
// then it stays until its stdin is closed.
func firstSync(ctx context.Context, config *rest.Config) error {
	began := time.Now()
	pods, err := cache.New(config, cache.Options{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- pods.Start(ctx) }()
	if _, err := pods.GetInformer(ctx, &corev1.Pod{}); err != nil { // blocks until it has synced
		return err
	}
	if !pods.WaitForCacheSync(ctx) {
		return errors.New("the cache did not sync")
	}
	took := time.Since(began)
	var list corev1.PodList
	if err := pods.List(ctx, &list); err != nil {
		return err
	}
	fmt.Printf("{\"seconds\": %.6f, \"objects\": %d}\n", took.Seconds(), len(list.Items))
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	cancel()
	return <-ended
}
