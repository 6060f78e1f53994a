package main

import (
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
)

const workers = 8 // as many as ours has by default

type reconciler struct {
	client.Client
}

func operate(ctx context.Context, config *rest.Config) error {
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return err
	}
	if err := builder.AddToScheme(scheme); err != nil {
		return err
	}
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:  scheme,
		Metrics: metricsserver.Options{BindAddress: "0"},
	})
	if err != nil {
		return err
	}
	err = ctrl.NewControllerManagedBy(manager).
		For(&Job{}).
		Owns(&corev1.ConfigMap{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: workers}).
		Complete(&reconciler{manager.GetClient()})
	if err != nil {
		return err
	}
	return manager.Start(ctx)
}

func (r *reconciler) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	var job Job
	if err := r.Get(ctx, request.NamespacedName, &job); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !job.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil
	}
	if err := r.ensureChild(ctx, &job); err != nil {
		return ctrl.Result{}, err
	}
	return ctrl.Result{}, r.setStatus(ctx, &job)
}

func (r *reconciler) ensureChild(ctx context.Context, job *Job) error {
	data := map[string]string{"text": job.Spec.Text}
	var child corev1.ConfigMap
	err := r.Get(ctx, client.ObjectKeyFromObject(job), &child)
	if apierrors.IsNotFound(err) {
		child = corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: job.Namespace, Name: job.Name},
			Data:       data,
		}
		if err := ctrl.SetControllerReference(job, &child, r.Scheme()); err != nil {
			return err
		}
		return r.Create(ctx, &child)
	}
	if err != nil {
		return err
	}
	if maps.Equal(child.Data, data) {
		return nil
	}
	child.Data = data
	return r.Update(ctx, &child)
}

func (r *reconciler) setStatus(ctx context.Context, job *Job) error {
	wanted := JobStatus{ObservedGeneration: job.Generation, Ready: true}
	if job.Status == wanted {
		return nil
	}
	before := job.DeepCopy()
	job.Status = wanted
	return r.Status().Patch(ctx, job, client.MergeFrom(before))
}
